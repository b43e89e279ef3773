"""Judges by themselves and what is planned of them: identity, noise of known size, canaries, sentinels, calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sacpo.data.canaries import SYNTHETIC_REFUSAL, canned_pairs
from sacpo.errors import DataError, SpaceError, StepError
from sacpo.execution.artifacts import RESPONSES, VERDICTS
from sacpo.execution.in_process import join
from sacpo.judges.noisy import noisy
from sacpo.judges.verdicts import DECIDED, ORDERS, Pair, order_inconsistency
from sacpo.planning.planner import make_plan
from sacpo.spaces.evaluation import CRITERIA, OPTIONAL_CRITERIA
from sacpo.spaces.loading import parse_space
from sacpo.statistics.calibration import calibrate
from sacpo.steps import generate as generate
from sacpo.steps import judge
from sacpo.synthetic.world import PROMPTS, extremes, gold_score
from tests.spaces import small, space
from tests.test_steps import job, policy

LLM: dict[str, Any] = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:1/v1", "api_key_env": None}


def judged(**changes: Any) -> set[str]:
    """Ids of the judge steps of a space whose helpfulness is judged by an LLM with these settings."""
    plan = make_plan(space(evaluation__helpfulness__judge=LLM | changes))
    return {step.id for step in plan.steps.values() if step.kind == "judge"}


def test_a_verdict_hangs_on_what_the_judge_is_and_not_on_where_or_how_it_is_asked(tmp_path: Path) -> None:
    same = ({"base_url": "http://127.0.0.1:2/v1"}, {"api_key_env": "KEY"}, {"calls": {"concurrency": 2}})
    assert all(judged(**change) == judged() for change in same)
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("The shorter one is better.")
    other = ({"model": "n"}, {"revision": "2"}, {"temperature": 1.0}, {"repeats": 2}, {"rubric": str(rubric)})
    assert all(judged(**change) != judged() for change in other)
    before = judged(rubric=str(rubric))
    rubric.write_text("The longer one is better.")
    assert judged(rubric=str(rubric)) != before
    rubric.write_text(" ")
    with pytest.raises(DataError, match="is empty"):
        judged(rubric=str(rubric))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"base_url": "127.0.0.1:8000"}, "must begin with http"),
        ({"base_url": "https://key@host/v1"}, "give keys through the environment"),
        ({"calls": {"max_spend": 3.0}}, "needs calls.price_prompt"),
        ({"calls": {"concurency": 3}}, "did you mean concurrency?"),
        ({"repeats": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_endpoints_are_refused_with_the_way_out(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpaceError, match=expected):
        parse_space(small(evaluation__helpfulness__judge=LLM | change))
    with pytest.raises(SpaceError, match=expected):  # on the panel too
        parse_space(small(evaluation__helpfulness__panel={"other": LLM | change}))


def test_every_pair_of_policies_is_judged_once_when_all_are() -> None:
    plan = make_plan(space(evaluation__all_pairs=True, merges=[]))
    policies = [t for t in plan.trials if t.policy and t is not plan.baseline]
    assert sum(len(t.head_to_head) for t in plan.trials) == len(policies) * (len(policies) - 1) // 2
    assert not any(t.head_to_head for t in plan.trials if t.method == "sentinel")


def _pairs(n: int) -> list[Pair]:
    """Pairs that the policy's answer wins by gold."""
    prompts = [text for text, category in PROMPTS if category == "benign"]
    return [Pair(str(i), "", i, prompts[i % 12], *extremes(prompts[i % 12], "helpfulness")) for i in range(n)]


def test_the_noisy_judge_errs_as_often_as_it_says() -> None:
    pairs = _pairs(12)
    ask = noisy("helpfulness", error=0.2, order_bias=0.0, repeats=200, seed=1)
    scores = [DECIDED[v.outcome] for v in ask(pairs)]
    assert np.mean(scores) == pytest.approx(0.8, abs=4 * 0.4 / len(scores) ** 0.5)
    biased = noisy("helpfulness", error=0.0, order_bias=0.3, repeats=200, seed=1)(pairs)
    first, second = ([DECIDED[v.outcome] for v in biased if v.order == order] for order in ORDERS)
    assert np.mean(first) == 1.0
    assert np.mean(second) == pytest.approx(0.7, abs=4 * 0.46 / len(second) ** 0.5)
    turned = order_inconsistency(((v.pair, v.repeat), v.order, v.outcome) for v in biased)
    assert turned == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("criterion", [*CRITERIA, *OPTIONAL_CRITERIA])
def test_canned_pairs_are_what_they_should_be(criterion: str, tmp_path: Path) -> None:
    for prompt, better, worse in canned_pairs(criterion, "synthetic"):
        assert gold_score(prompt, better, criterion) > gold_score(prompt, worse, criterion)
    assert len({pair[0] for pair in canned_pairs(criterion, "text")}) >= 8
    payload = {"criterion": criterion, "sentences": "synthetic", "judge": {"kind": "gold"}}
    assert judge.canary(job(tmp_path / "gold", payload)).metrics["canary_win_rate"] == 1.0


def test_canaries_stop_a_judge_that_only_looks_at_the_order_or_is_turned_round(tmp_path: Path) -> None:
    noisy_judge = {"kind": "noisy", "error": 0.0, "order_bias": 0.9, "repeats": 1, "seed": 0}
    payload = {"criterion": "helpfulness", "sentences": "synthetic", "judge": noisy_judge}
    with pytest.raises(StepError, match="follows the order that answers are shown in: on"):
        judge.canary(job(tmp_path / "order", payload))
    payload["judge"] = noisy_judge | {"order_bias": 0.0, "error": 1.0}
    with pytest.raises(StepError, match=r"prefers the worse answer of canned pairs.*--skip-canaries goes on anyway"):
        judge.canary(job(tmp_path / "turned", payload))


def test_the_baseline_against_itself_is_even(tmp_path: Path) -> None:
    refusal = {"generation": {"samples": 2}, "refusal": SYNTHETIC_REFUSAL}
    prompts = [[str(i), text, category] for i, (text, category) in enumerate(PROMPTS)]
    sft = {"policy": policy(tmp_path / "policy")}
    generate.run(job(tmp_path / "answers", refusal, sft, prompts=prompts))
    rows = pq.read_table(tmp_path / "answers" / RESPONSES).to_pylist()
    assert len(rows) == 2 * len(PROMPTS)
    assert {row["tokens"] for row in rows} == {4}  # three sentences, one token each, and the end
    assert gold_score(rows[0]["prompt"], rows[0]["response"], "compliance") == 0.0
    sides = {"answers": tmp_path / "answers", "baseline": tmp_path / "answers"}
    noise = {"kind": "noisy", "error": 0.0, "order_bias": 0.5, "repeats": 1, "seed": 0}
    payload = {"criterion": "harmlessness", "judge": noise}
    facts = judge.run(job(tmp_path / "even", payload, sides))
    assert facts.metrics["verdicts"] == 4 * len(PROMPTS)
    outcomes = pq.read_table(tmp_path / "even" / VERDICTS).to_pylist()
    assert {row["order"] for row in outcomes} == set(ORDERS)


def test_a_judging_split_over_workers_is_the_judging(tmp_path: Path) -> None:
    prompts = [[str(i), text, category] for i, (text, category) in enumerate(PROMPTS)]
    sft = {"policy": policy(tmp_path / "policy")}
    for name, text in (("answers", SYNTHETIC_REFUSAL), ("baseline", extremes(PROMPTS[0][0], "helpfulness")[0])):
        generate.run(job(tmp_path / name, {"generation": {"samples": 3}, "refusal": text}, sft, prompts=prompts))
    sides = {"answers": tmp_path / "answers", "baseline": tmp_path / "baseline"}
    payload = {"criterion": "helpfulness", "judge": {"kind": "gold"}}
    whole = job(tmp_path / "whole", payload, sides)
    judge.run(whole)
    parts = job(tmp_path / "parts", payload, sides)
    records = [judge.run(replace(parts, shard=(i, 3))).as_record() for i in range(3)]
    record = join(parts, VERDICTS, records)
    wanted = pq.read_table(whole.folder / VERDICTS).drop_columns("latency")
    assert pq.read_table(parts.folder / VERDICTS).drop_columns("latency").equals(wanted)
    assert record["metrics"]["verdicts"] == 3 * len(PROMPTS)
    assert [path.name for path in parts.folder.iterdir()] == [VERDICTS]


def test_the_longest_answer_sentinel_keeps_the_longest_of_its_draws() -> None:
    rows = [{"response": "x" * length, "sample": i} for i, length in enumerate((1, 5, 3, 2, 2, 9))]
    kept = generate._longest(rows, 3)
    assert [len(row["response"]) for row in kept] == [5, 9]
    assert [row["sample"] for row in kept] == [0, 1]


def test_calibration_finds_the_temperature_that_the_scores_were_made_with() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 20_000)
    preferred = rng.random(true.size) < 1 / (1 + np.exp(-true))
    margins = 3.0 * np.where(preferred, true, -true)  # three times too sure of itself
    found = calibrate(margins)
    assert found.temperature == pytest.approx(3.0, rel=0.05)
    assert found.error < 0.02 < found.error_before
    assert sum(part.n for part in found.bins) == 2 * true.size
    assert calibrate([1.0, 2.0]).temperature < 0.2  # never wrong: as sure as the range allows
    with pytest.raises(ValueError, match="at least one"):
        calibrate([])
