"""Judging through the commands: LLM judges behind real HTTP, canaries, coverage, the panel; no key in any file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sacpo.results import tables
from sacpo.synthetic.world import PROMPTS, gold_score
from tests.commands import run, sweep, write_space
from tests.servers import Behaviour, Fail, Say, Server, scripted, verdict
from tests.spaces import small

CATEGORY = dict(PROMPTS)
KEY = "sk-secret-4b1d5e"


def gold(prompt: str, first: str, second: str, attempt: int = 1) -> Behaviour:
    """What the gold judge would say of the two answers."""
    criterion = "helpfulness" if CATEGORY[prompt] == "benign" else "harmlessness"
    a, b = (gold_score(prompt, answer, criterion) for answer in (first, second))
    return Say(verdict("tie" if a == b else "A" if a > b else "B"))


def chance(*texts: str) -> float:
    """A number in [0, 1) that hangs on the texts."""
    return int.from_bytes(hashlib.sha256("|".join(texts).encode()).digest()[:4], "big") / 2**32


def failing(share: float, policy: Callable[..., Behaviour] = gold) -> Callable[[str, str, str, int], Behaviour]:
    """A policy that fails this share of calls, each in one way, until the third attempt."""
    kinds: list[Behaviour] = [Fail(500), Fail(429, headers={"Retry-After": "0"}), "cut", "half", Say("Both are fine.")]

    def behave(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        luck = chance(prompt, first, second)
        if luck < share and attempt < 3:
            return kinds[int(luck / share * len(kinds))]
        return policy(prompt, first, second)

    return behave


def llm(server: Server, **changes: Any) -> dict[str, Any]:
    calls = {"attempts": 4, "timeout": 20.0, "concurrency": 32}
    place = {"base_url": server.base_url, "api_key_env": None, "calls": calls}
    return {"kind": "llm", "model": "scripted", **place, **changes}


@pytest.fixture
def copied(small_results: Path, tmp_path: Path) -> Path:
    """A copy of the small sweep's results whose `sweep.json` names the copied store."""
    folder = tmp_path / "results"
    shutil.copytree(small_results, folder)
    stored = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(stored | {"store": str(folder / "store")}))
    return folder


def judge_again(results: Path, judge: dict[str, Any], name: str) -> pd.DataFrame:
    path = results.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(judge))
    answer = run("sacpo.judge", str(results), "--judge", str(path))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return tables.load(results).comparisons["panel"]


def test_stored_answers_are_judged_again_and_failed_calls_move_no_number(copied: Path) -> None:
    with scripted(gold) as server:
        panel = judge_again(copied, llm(server), "sound")
        first = server.calls
        judge_again(copied, llm(server), "sound")
        assert server.calls == first  # every verdict is in the store
    with scripted(failing(0.2)) as server:
        panel = judge_again(copied, llm(server, revision="other"), "shaky")
        assert server.calls > 1.2 * first
    rates = panel.pivot(index="trial_id", columns="panel", values="helpfulness")
    assert (rates["sound"] == rates["shaky"]).all()
    # the endpoint says what gold says, so it gives what the gold judge gave
    assert rates["main"].to_numpy() == pytest.approx(rates["sound"].to_numpy())
    agreement = tables.load(copied).comparisons["agreement"]
    assert set(agreement["raw"]) == {1.0}
    assert set(agreement["kappa"]) == {1.0}
    verdicts = tables.load(copied).verdicts.query("panel == 'sound'")
    assert set(verdicts["order"]) == {"policy_first", "baseline_first", "none"}
    assert verdicts.loc[verdicts["order"] == "none", "outcome"].eq("tie").all()
    assert "sound" in (copied / "report.html").read_text()


def test_an_endpoint_that_is_down_for_a_minute_costs_no_verdict(copied: Path) -> None:
    began: list[float] = []

    def down(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        if attempt == 1 and chance(prompt, first, second) < 0.1 and not began:
            began.append(time.monotonic())
        return Fail(503) if began and time.monotonic() - began[0] < 60 else gold(prompt, first, second)

    with scripted(gold) as server:
        judge_again(copied, llm(server, revision="calm"), "calm")
    with scripted(down) as server:
        panel = judge_again(copied, llm(server, revision="away"), "away")
    assert began
    verdicts = tables.load(copied).verdicts.query("panel == 'away'")
    assert not verdicts["outcome"].eq("unavailable").any()
    rates = panel.pivot(index="trial_id", columns="panel", values="harmlessness")
    assert (rates["calm"] == rates["away"]).all()


def test_bad_judges_are_refused_and_named(copied: Path) -> None:
    path = copied.parent / "bad.yaml"
    for content, more, expected in (
        ({"kind": "llm", "modell": "x"}, [], "did you mean model?"),
        ({"kind": "gold"}, ["--criterion", "helpfullness"], "this sweep has helpfulness, harmlessness"),
        ({"kind": "llm", "model": "x", "base_url": "localhost"}, [], "must begin with http"),
        ({"kind": "gold"}, ["--name", "../x"], "should match pattern"),
    ):
        path.write_text(yaml.safe_dump(content))
        answer = run("sacpo.judge", str(copied), "--judge", str(path), *more)
        assert answer.returncode == 2, answer.stdout
        assert expected in answer.stderr


def test_judging_again_that_fails_leaves_the_results_as_they_were(copied: Path) -> None:
    before = (copied / "sweep.json").read_bytes(), (copied / "trials.csv").read_bytes()
    path = copied.parent / "dead.yaml"
    dead = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None}
    dead["calls"] = {"attempts": 1}
    path.write_text(yaml.safe_dump(dead))
    answer = run("sacpo.judge", str(copied), "--judge", str(path))
    assert answer.returncode == 1
    assert "decided none of 8 canned pairs; the first said: unavailable" in answer.stdout
    assert ((copied / "sweep.json").read_bytes(), (copied / "trials.csv").read_bytes()) == before


def test_a_judge_with_its_sign_turned_stops_the_sweep_before_training(tmp_path: Path) -> None:
    def turned(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        return gold(prompt, second, first)

    with scripted(turned) as server:
        data = small()
        data["evaluation"]["helpfulness"]["judge"] = llm(server)
        answer = sweep(write_space(data, tmp_path), tmp_path / "results")
    assert answer.returncode == 1
    assert "prefers the worse answer of canned pairs" in answer.stdout
    assert not list((tmp_path / "results" / "store" / "steps").glob("train-*"))


def test_missing_verdicts_fail_a_trial_and_the_same_command_asks_for_them_alone(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint that never answers for a third of the prompts, and later does; with a key that no file may hold."""
    monkeypatch.setenv("SACPO_TEST_KEY", KEY)
    healed = False

    def partial(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        lost = not healed and chance(prompt) < 0.3 and len(first) != len(second)
        return Fail(500, body='{"error": {"message": "no place for {key}"}}') if lost else gold(prompt, first, second)

    with scripted(partial) as server:
        data = small(resources__workers=2)
        judge = llm(server, api_key_env="SACPO_TEST_KEY")
        judge["calls"]["attempts"] = 1
        for criterion in ("helpfulness", "harmlessness"):
            data["evaluation"][criterion]["judge"] = judge
        space, command = write_space(data, tmp_path), ("--store", str(copied / "store"), "--skip-canaries")
        answer = sweep(space, tmp_path / "judged", *command)
        assert answer.returncode == 1, answer.stdout
        assert "evaluation.min_coverage" in answer.stdout
        found = tables.load(tmp_path / "judged")
        assert found.sweep["canaries"] == "skipped"
        failed = found.trials[found.trials["status"] == "failed"]
        assert len(failed)
        assert failed["helpfulness"].isna().all()
        assert (failed["helpfulness_if_missing_lost"] < failed["helpfulness_if_missing_won"]).any()
        before, missing = server.calls, (found.verdicts["outcome"] == "unavailable").sum()
        healed = True
        answer = sweep(space, tmp_path / "judged", *command)
        assert answer.returncode == 0, answer.stdout
        assert 0 < server.calls - before <= missing  # what two trials share is asked once
    after = tables.load(tmp_path / "judged").trials.set_index("trial_id")
    sound = tables.load(copied).trials.set_index("trial_id")
    assert after.loc[sound.index, "helpfulness"].to_numpy() == pytest.approx(sound["helpfulness"].to_numpy())
    for folder in (tmp_path, Path("/tmp/ray/session_latest").resolve()):
        for root, _, names in os.walk(folder):
            for name in names:
                path = Path(root) / name
                if path.is_file() and not path.is_socket():
                    assert KEY.encode() not in path.read_bytes(), path


def test_a_sweep_with_a_panel_a_third_criterion_and_all_pairs(copied: Path, tmp_path: Path) -> None:
    """On policies and answers that are stored already, so that only judging is left to do."""
    data = small(resources__workers=2)
    evaluation = data["evaluation"]
    evaluation["compliance"] = {"prompts": {"kind": "synthetic", "category": "benign"}, "judge": {"kind": "gold"}}
    evaluation["helpfulness"]["panel"] = {"shaky": {"kind": "noisy", "error": 0.2, "order_bias": 0.2, "repeats": 2}}
    evaluation["all_pairs"] = True
    answer = sweep(write_space(data, tmp_path), tmp_path / "judged", "--store", str(copied / "store"))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = tables.load(tmp_path / "judged")
    assert set(found.steps.loc[~found.steps["reused"], "kind"]) == {"judge", "canary"}
    trials = found.trials.set_index("label")
    assert trials["compliance"].between(0, 1).all()
    assert (trials["n_compliance"] == 24).all()
    assert not trials.loc["always-refuse", "on_front"]
    agreement = found.comparisons["agreement"].iloc[0]
    assert (agreement["judge"], agreement["other_judge"]) == ("main", "shaky")
    assert 0.5 < agreement["raw"] < 1.0
    assert agreement["kappa_low"] <= agreement["kappa"] <= agreement["kappa_high"]
    ranking = found.comparisons["ranking"]
    assert set(ranking["criterion"]) == {"helpfulness", "harmlessness", "compliance"}
    sft = ranking[ranking["trial_id"] == found.trials["trial_id"].iloc[0]]
    assert (sft[["strength", "low", "high"]] == 0).all(axis=None)
    assert ((ranking["low"] <= ranking["strength"]) & (ranking["strength"] <= ranking["high"])).all()
    labels = found.trials.set_index("trial_id")["label"]
    differences = found.comparisons["differences"]
    equal = {"dpo:helpfulness@2", "p-sacpo q=0 (dpo:helpfulness@2>dpo:harmlessness@2)"}
    same = differences[
        differences["trial_id"].map(labels).isin(equal) & differences["other_id"].map(labels).isin(equal)
    ]
    assert (same["difference"] == 0).all()
    page = (tmp_path / "judged" / "report.html").read_text()
    for title in ("Judges", "Panel", "Bias", "Differences on the front", "Ranking"):
        assert f"<h2>{title}</h2>" in page


def test_a_missing_key_is_named_before_any_work(tmp_path: Path) -> None:
    data = small()
    data["evaluation"]["helpfulness"]["judge"] = {"kind": "llm", "model": "m", "api_key_env": "SACPO_NO_SUCH_KEY"}
    answer = sweep(write_space(data, tmp_path), tmp_path / "results")
    assert answer.returncode == 2
    assert "SACPO_NO_SUCH_KEY" in answer.stderr
    assert not list((tmp_path / "results" / "store").glob("steps/*"))
