"""Judging by the commands: LLM judges behind real HTTP, canaries, coverage, the panel; no key in any file."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sacpo import judge
from sacpo import sweep as sweep_module
from sacpo.judges import call_batch
from sacpo.results import load
from sacpo.synthetic.world import PROMPTS, gold_score
from tests.commands import Answer, call, sweep, sweep_here, write_space
from tests.servers import Behaviour, Fail, Say, Server, scripted, verdict
from tests.spaces import small

CATEGORY = dict(PROMPTS)
KEY = "sk-secret-4b1d5e"


def gold(prompt: str, first: str, second: str, attempt: int = 1) -> Behaviour:
    """The gold judge's verdict on the two answers."""
    criterion = "helpfulness" if CATEGORY[prompt] == "benign" else "harmlessness"
    a, b = (gold_score(prompt, answer, criterion) for answer in (first, second))
    return Say(verdict("tie" if a == b else "A" if a > b else "B"))


def chance(*texts: str) -> float:
    """A number in [0, 1) that depends on the texts alone."""
    return int.from_bytes(hashlib.sha256("|".join(texts).encode()).digest()[:4], "big") / 2**32


def failing(share: float, policy: Callable[..., Behaviour] = gold) -> Callable[[str, str, str, int], Behaviour]:
    """A policy under which this share of calls fails, each in one of several ways, before the third attempt."""
    kinds: list[Behaviour] = [Fail(500), Fail(429, headers={"Retry-After": "0"}), "cut", "half", Say("Both are fine.")]

    def behave(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        luck = chance(prompt, first, second)
        if luck < share and attempt < 3:
            return kinds[int(luck / share * len(kinds))]
        return policy(prompt, first, second)

    return behave


def llm_judge(server: Server, **changes: Any) -> dict[str, Any]:
    """Settings of an LLM judge behind this server."""
    calls = {"attempts": 4, "timeout": 20.0, "concurrency": 32}
    endpoint = {"base_url": server.base_url, "api_key_env": None, "calls": calls}
    return {"kind": "llm", "model": "scripted", **endpoint, **changes}


def judge_command(results: Path, settings: dict[str, Any], name: str, *more: str) -> Answer:
    """Run `sacpo.judge` in the calling process."""
    path = results.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return call(judge.main, str(results), "--judge", str(path), *more)


def judge_again(results: Path, settings: dict[str, Any], name: str) -> pd.DataFrame:
    """Judge the stored answers by another judge; the panel's table."""
    answer = judge_command(results, settings, name)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return load(results).comparisons["panel"]


def test_stored_answers_are_judged_again_and_failed_calls_change_no_number(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_batch, "BACKOFF_START", 0.05)
    with scripted(gold) as server:
        panel = judge_again(copied, llm_judge(server), "sound")
        first = server.calls
        judge_again(copied, llm_judge(server), "sound")
        assert server.calls == first  # all verdicts come from the store
    with scripted(failing(0.2)) as server:
        panel = judge_again(copied, llm_judge(server, revision="other"), "shaky")
        assert server.calls > 1.2 * first
    rates = panel.pivot(index="trial_id", columns="panel", values="helpfulness")
    assert (rates["sound"] == rates["shaky"]).all()
    # The endpoint replies with the gold verdicts, so its win rates are those of the gold judge.
    assert rates["main"].to_numpy() == pytest.approx(rates["sound"].to_numpy())
    agreement = load(copied).comparisons["agreement"]
    assert set(agreement["raw"]) == {1.0}
    assert set(agreement["kappa"]) == {1.0}
    verdicts = load(copied).verdicts.query("panel == 'sound'")
    assert set(verdicts["order"]) == {"policy_first", "baseline_first", "none"}
    assert verdicts.loc[verdicts["order"] == "none", "outcome"].eq("tie").all()
    assert "sound" in (copied / "report.html").read_text()


def test_an_endpoint_that_is_down_for_a_while_costs_no_verdict(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outage lasts longer than all attempts of a call with their pauses, and less than `OUTAGE_S`."""
    monkeypatch.setattr(call_batch, "BACKOFF_START", 0.05)
    monkeypatch.setattr(call_batch, "OUTAGE_S", 20.0)
    outage_s, began = 2.0, list[float]()

    def down(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        if attempt == 1 and chance(prompt, first, second) < 0.1 and not began:
            began.append(time.monotonic())
        during = began and time.monotonic() - began[0] < outage_s
        return Fail(503) if during else gold(prompt, first, second)

    with scripted(gold) as server:
        judge_again(copied, llm_judge(server, revision="calm"), "calm")
    with scripted(down) as server:
        settings = llm_judge(server, revision="away")
        settings["calls"]["attempts"] = 2
        assert outage_s > 4 * settings["calls"]["attempts"] * call_batch.BACKOFF_START
        panel = judge_again(copied, settings, "away")
    assert began
    verdicts = load(copied).verdicts.query("panel == 'away'")
    assert not verdicts["outcome"].eq("unavailable").any()
    rates = panel.pivot(index="trial_id", columns="panel", values="harmlessness")
    assert (rates["calm"] == rates["away"]).all()


def test_bad_judges_are_refused_and_named(copied: Path) -> None:
    for content, more, expected in (
        ({"kind": "llm", "modell": "x"}, [], "did you mean model?"),
        ({"kind": "gold"}, ["--criterion", "helpfullness"], "this sweep has helpfulness, harmlessness"),
        ({"kind": "llm", "model": "x", "base_url": "localhost"}, [], "must begin with http"),
        ({"kind": "gold"}, ["--name", "../x"], "should match pattern"),
    ):
        answer = judge_command(copied, content, "bad", *more)
        assert answer.returncode == 2, answer.stdout
        assert expected in answer.stderr


def test_judging_again_that_fails_leaves_the_results_as_they_were(copied: Path) -> None:
    before = (copied / "sweep.json").read_bytes(), (copied / "trials.csv").read_bytes()
    dead = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None}
    answer = judge_command(copied, dead | {"calls": {"attempts": 1}}, "dead")
    assert answer.returncode == 1
    assert "decided none of 12 canned pairs; its first reply was unavailable" in answer.stdout
    assert ((copied / "sweep.json").read_bytes(), (copied / "trials.csv").read_bytes()) == before


def test_a_judge_with_inverted_verdicts_stops_the_sweep_before_training(tmp_path: Path) -> None:
    def inverted(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        return gold(prompt, second, first)

    with scripted(inverted) as server:
        data = small()
        data["evaluation"]["helpfulness"]["judge"] = llm_judge(server)
        answer = sweep_here(write_space(data, tmp_path), tmp_path / "results")
    assert answer.returncode == 1
    assert "prefers the worse answer of canned pairs" in answer.stdout
    assert not list((tmp_path / "results" / "store" / "steps").glob("train-*"))


def test_missing_verdicts_fail_a_trial_and_the_same_command_asks_only_for_them(copied: Path, tmp_path: Path) -> None:
    """The endpoint fails for a third of the prompts in the first run, and answers all of them in the second."""
    check_missing_verdicts(copied, tmp_path, sweep_here, api_key_env=None)


@pytest.mark.slow
def test_a_key_is_in_no_file_of_a_sweep_through_ray(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The endpoint repeats the key in its errors; neither the sweep's files nor Ray's logs hold it."""
    monkeypatch.setenv("SACPO_TEST_KEY", KEY)
    before = set(Path("/tmp/ray").glob("session_*_*"))
    check_missing_verdicts(copied, tmp_path, sweep, api_key_env="SACPO_TEST_KEY")
    sessions = set(Path("/tmp/ray").glob("session_*_*")) - before
    assert sessions, "Ray has written its logs"
    for folder in (tmp_path, *sessions):
        for root, _, names in os.walk(folder):
            for name in names:
                path = Path(root) / name
                if path.is_file() and not path.is_socket():
                    assert KEY.encode() not in path.read_bytes(), path


def check_missing_verdicts(
    copied: Path, tmp_path: Path, run_sweep: Callable[..., Answer], api_key_env: str | None
) -> None:
    """Run a sweep whose judge fails for some prompts, then the same command, in this process, with a sound judge."""
    healed = False

    def partial(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        fails = not healed and chance(prompt) < 0.3 and len(first) != len(second)
        body = '{"error": {"message": "no place for {key}"}}'
        return Fail(500, body=body) if fails else gold(prompt, first, second)

    with scripted(partial) as server:
        data = small(resources__workers=2)
        settings = llm_judge(server, api_key_env=api_key_env)
        settings["calls"]["attempts"] = 1
        for criterion in ("helpfulness", "harmlessness"):
            data["evaluation"][criterion]["judge"] = settings
        space, command = write_space(data, tmp_path), ("--store", str(copied / "store"), "--skip-canaries")
        answer = run_sweep(space, tmp_path / "judged", *command)
        assert answer.returncode == 1, answer.stdout
        assert "evaluation.min_coverage" in answer.stdout
        results = load(tmp_path / "judged")
        assert results.sweep.canaries == "skipped"
        failed = results.trials[results.trials["status"] == "failed"]
        assert len(failed)
        assert failed["helpfulness"].isna().all()
        assert (failed["helpfulness_if_missing_lost"] < failed["helpfulness_if_missing_won"]).any()
        before, missing = server.calls, (results.verdicts["outcome"] == "unavailable").sum()
        healed = True
        answer = sweep_here(space, tmp_path / "judged", *command)
        assert answer.returncode == 0, answer.stdout
        assert 0 < server.calls - before <= missing  # answers that two trials share are judged once
    after = load(tmp_path / "judged").trials.set_index("trial_id")
    sound = load(copied).trials.set_index("trial_id")
    assert after.loc[sound.index, "helpfulness"].to_numpy() == pytest.approx(sound["helpfulness"].to_numpy())


def test_a_sweep_with_a_panel_a_third_criterion_and_all_pairs(copied: Path, tmp_path: Path) -> None:
    """The policies and answers are in the store already, so the sweep only judges."""
    data = small()
    evaluation = data["evaluation"]
    evaluation["compliance"] = {"prompts": {"kind": "synthetic", "category": "benign"}, "judge": {"kind": "gold"}}
    evaluation["helpfulness"]["panel"] = {"shaky": {"kind": "noisy", "error": 0.2, "order_bias": 0.2, "repeats": 2}}
    evaluation["all_pairs"] = True
    answer = sweep_here(write_space(data, tmp_path), tmp_path / "judged", "--store", str(copied / "store"))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    results = load(tmp_path / "judged")
    assert set(results.steps.loc[~results.steps["reused"], "kind"]) == {"judge", "canary"}
    trials = results.trials.set_index("label")
    assert trials["compliance"].between(0, 1).all()
    assert (trials["n_compliance"] == 24).all()
    assert not trials.loc["always-refuse", "on_front"]
    agreement = results.comparisons["agreement"].iloc[0]
    assert (agreement["judge"], agreement["other_judge"]) == ("main", "shaky")
    assert 0.5 < agreement["raw"] < 1.0
    assert agreement["kappa_low"] <= agreement["kappa"] <= agreement["kappa_high"]
    ranking = results.comparisons["ranking"]
    assert set(ranking["criterion"]) == {"helpfulness", "harmlessness", "compliance"}
    sft = ranking[ranking["trial_id"] == results.trials["trial_id"].iloc[0]]
    assert (sft[["strength", "low", "high"]] == 0).all(axis=None)
    assert ((ranking["low"] <= ranking["strength"]) & (ranking["strength"] <= ranking["high"])).all()
    labels = results.trials.set_index("trial_id")["label"]
    differences = results.comparisons["differences"]
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
    answer = call(sweep_module.main, str(write_space(data, tmp_path)), "--results", str(tmp_path / "results"))
    assert answer.returncode == 2
    assert "SACPO_NO_SUCH_KEY" in answer.stderr
    assert not list((tmp_path / "results" / "store").glob("steps/*"))
