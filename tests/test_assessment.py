"""Judges by themselves: identity of their steps, noise of known size, canaries, sentinels, calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter
from scipy.special import expit

from sacpo.data.canaries import CANARY_VERSION, SYNTHETIC_REFUSAL, canned_pairs
from sacpo.errors import DataError, SpaceError, StepError
from sacpo.execution.artifacts import RESPONSES, VERDICTS
from sacpo.execution.in_process import join_shards
from sacpo.execution.job import Job
from sacpo.judges import scalar
from sacpo.judges.noisy import noisy
from sacpo.judges.verdicts import ORDERS, SCORES, AnswerPair, order_inconsistency
from sacpo.planning.judge_payloads import CanaryPayload, JudgePayload, SyntheticScale
from sacpo.planning.metrics import CanaryMetrics, JudgeMetrics
from sacpo.planning.payloads import GeneratePayload
from sacpo.planning.planner import make_plan
from sacpo.spaces.evaluation import CRITERIA, OPTIONAL_CRITERIA, Generation, JudgeSettings
from sacpo.spaces.loading import parse_space
from sacpo.statistics.calibration import Calibration, calibrate
from sacpo.steps import canary, generate, judge
from sacpo.synthetic.world import PROMPTS, WORLD_VERSION, extremes, gold_score
from tests.jobs import WORLD_PROMPTS, job, policy
from tests.spaces import small, space

LLM: dict[str, Any] = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:1/v1", "api_key_env": None}


def judged(**changes: Any) -> set[str]:
    """Ids of the judge steps of a space whose helpfulness is judged by an LLM with these settings."""
    plan = make_plan(space(evaluation__helpfulness__judge=LLM | changes))
    return {step.id for step in plan.steps.values() if step.kind == "judge"}


def test_a_verdicts_id_depends_on_the_judge_and_not_on_its_address_or_its_rate_of_calls(tmp_path: Path) -> None:
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
        ({"calls": {"max_spend": 3.0}}, "give calls.price_prompt"),
        ({"calls": {"concurency": 3}}, "did you mean concurrency?"),
        ({"repeats": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_endpoints_are_refused_with_the_way_out(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(SpaceError, match=expected):
        parse_space(small(evaluation__helpfulness__judge=LLM | change))
    with pytest.raises(SpaceError, match=expected):  # on the panel too
        parse_space(small(evaluation__helpfulness__panel={"other": LLM | change}))


def test_all_pairs_judges_every_pair_of_policies_once() -> None:
    plan = make_plan(space(evaluation__all_pairs=True, merges=[]))
    policies = [t for t in plan.trials if t.policy and t is not plan.baseline]
    assert sum(len(t.head_to_head) for t in plan.trials) == len(policies) * (len(policies) - 1) // 2
    assert not any(t.head_to_head for t in plan.trials if t.method == "sentinel")


def winning_pairs(n: int) -> list[AnswerPair]:
    """Pairs that the policy's answer wins by the gold values."""
    prompts = [text for text, category in PROMPTS if category == "benign"]
    return [AnswerPair(str(i), "", i, prompts[i % 12], *extremes(prompts[i % 12], "helpfulness")) for i in range(n)]


def test_the_noisy_judge_errs_as_often_as_its_settings_say() -> None:
    pairs = winning_pairs(12)
    ask = noisy("helpfulness", error=0.2, order_bias=0.0, repeats=200, seed=1)
    scores = [SCORES[v.outcome] for v in ask(pairs)]
    assert np.mean(scores) == pytest.approx(0.8, abs=4 * 0.4 / len(scores) ** 0.5)
    biased = noisy("helpfulness", error=0.0, order_bias=0.3, repeats=200, seed=1)(pairs)
    first, second = ([SCORES[v.outcome] for v in biased if v.order == order] for order in ORDERS)
    assert np.mean(first) == 1.0
    assert np.mean(second) == pytest.approx(0.7, abs=4 * 0.46 / len(second) ** 0.5)
    inconsistency = order_inconsistency(((v.pair, v.repeat), v.order, v.outcome) for v in biased)
    assert inconsistency == pytest.approx(0.3, abs=0.04)


def judge_payload(criterion: str, settings: dict[str, Any]) -> JudgePayload:
    """Payload of a judge that scores by the synthetic world's values."""
    parsed: Any = TypeAdapter(JudgeSettings).validate_python(settings)
    return JudgePayload(criterion=criterion, judge=parsed, inputs=SyntheticScale(world=WORLD_VERSION))


def canary_job(folder: Path, criterion: str, settings: dict[str, Any]) -> Job[Any]:
    """A job that tries a judge on the canned pairs of the synthetic world."""
    values = dict(judge_payload(criterion, settings))
    payload = CanaryPayload.model_validate(values | {"pairs": CANARY_VERSION, "sentences": "synthetic"})
    return job(folder, "canary", payload)


def sentinel_answers(folder: Path, text: str, samples: int) -> Path:
    """Write the answers of a sentinel that gives the same text to every prompt."""
    payload = GeneratePayload(
        generation=Generation(samples=samples), prompts="prompts-0", prompt_template="{prompt} ", refusal=text
    )
    parents = {"policy": policy(folder.with_name("policy"))}
    generate.run(job(folder, "generate", payload, parents, WORLD_PROMPTS))
    return folder


@pytest.mark.parametrize("criterion", [*CRITERIA, *OPTIONAL_CRITERIA])
def test_the_better_answer_of_every_canned_pair_has_the_higher_gold_score(criterion: str, tmp_path: Path) -> None:
    for prompt, better, worse in canned_pairs(criterion, "synthetic"):
        assert gold_score(prompt, better, criterion) > gold_score(prompt, worse, criterion)
    assert len({pair[0] for pair in canned_pairs(criterion, "text")}) >= 8
    metrics = canary.run(canary_job(tmp_path / "gold", criterion, {"kind": "gold"})).metrics
    assert isinstance(metrics, CanaryMetrics)
    assert metrics.win_rate == 1.0


def test_canaries_stop_a_judge_that_follows_the_order_or_prefers_the_worse_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"kind": "noisy", "error": 0.0, "order_bias": 0.9}
    with pytest.raises(StepError, match="follows the order in which answers are shown: on"):
        canary.run(canary_job(tmp_path / "order", "helpfulness", settings))
    inverted = scalar.by_score(lambda answers: [-gold_score(*answer, "helpfulness") for answer in answers])
    monkeypatch.setattr(canary, "make_judge", lambda *_, **__: inverted)
    with pytest.raises(StepError, match=r"prefers the worse answer of canned pairs.*--skip-canaries continues without"):
        canary.run(canary_job(tmp_path / "inverted", "helpfulness", {"kind": "gold"}))


def test_the_baseline_against_itself_is_even(tmp_path: Path) -> None:
    answers = sentinel_answers(tmp_path / "answers", SYNTHETIC_REFUSAL, samples=2)
    rows = pq.read_table(answers / RESPONSES).to_pylist()
    assert len(rows) == 2 * len(PROMPTS)
    assert {row["tokens"] for row in rows} == {4}  # three sentences, one token each, and the end
    assert gold_score(rows[0]["prompt"], rows[0]["response"], "compliance") == 0.0
    payload = judge_payload("harmlessness", {"kind": "noisy", "error": 0.0, "order_bias": 0.5})
    metrics = judge.run(job(tmp_path / "even", "judge", payload, {"answers": answers, "baseline": answers})).metrics
    assert isinstance(metrics, JudgeMetrics)
    assert metrics.verdicts == 4 * len(PROMPTS)
    outcomes = pq.read_table(tmp_path / "even" / VERDICTS).to_pylist()
    assert {row["order"] for row in outcomes} == set(ORDERS)


def test_a_judge_step_split_over_workers_gives_the_verdicts_of_a_whole_one(tmp_path: Path) -> None:
    answers = sentinel_answers(tmp_path / "answers", SYNTHETIC_REFUSAL, samples=3)
    text = extremes(PROMPTS[0][0], "helpfulness")[0]
    sides = {"answers": answers, "baseline": sentinel_answers(tmp_path / "baseline", text, samples=3)}
    payload = judge_payload("helpfulness", {"kind": "gold"})
    whole = job(tmp_path / "whole", "judge", payload, sides)
    judge.run(whole)
    parts = job(tmp_path / "parts", "judge", payload, sides)
    results = [judge.run(replace(parts, shard=(i, 3))).result() for i in range(3)]
    result = join_shards(parts, VERDICTS, results)
    expected = pq.read_table(whole.folder / VERDICTS).drop_columns("latency")
    assert pq.read_table(parts.folder / VERDICTS).drop_columns("latency").equals(expected)
    assert isinstance(result.metrics, JudgeMetrics)
    assert result.metrics.verdicts == 3 * len(PROMPTS)
    assert result.workers == 3
    assert [path.name for path in parts.folder.iterdir()] == [VERDICTS]


def test_the_longest_answer_sentinel_keeps_the_longest_of_its_draws() -> None:
    rows = [{"response": "x" * length, "sample": i} for i, length in enumerate((1, 5, 3, 2, 2, 9))]
    kept = generate._longest(rows, 3)
    assert [len(row["response"]) for row in kept] == [5, 9]
    assert [row["sample"] for row in kept] == [0, 1]


def test_calibration_finds_the_temperature_of_the_scores() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 20_000)
    preferred = rng.random(true.size) < 1 / (1 + np.exp(-true))
    margins = 3.0 * np.where(preferred, true, -true)  # three times too confident
    calibration = calibrate(margins)
    assert calibration.temperature == pytest.approx(3.0, rel=0.05)
    assert calibration.error < 0.02 < calibration.error_before
    assert sum(part.n for part in calibration.bins) == 2 * true.size
    assert calibrate([1.0, 2.0]).temperature < 0.2  # never wrong: as confident as the range allows
    with pytest.raises(ValueError, match="at least one"):
        calibrate([])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_interval_of_the_calibration_error_covers_it_and_narrows(temperature: float) -> None:
    rng = np.random.default_rng(4)

    def simulated(pairs: int) -> Calibration:
        margins = rng.normal(0, 2, pairs)
        won = rng.random(pairs) < expit(margins / temperature)
        return calibrate(np.where(won, margins, -margins), smallest_sample=pairs + 1)  # the temperature stays 1

    truth = simulated(5_000).error
    few, many = ([simulated(pairs) for _ in range(30)] for pairs in (40, 400))
    for results in (few, many):
        assert np.mean([each.error_low - 0.005 <= truth <= each.error_high for each in results]) > 0.8
        assert all(each.error_low <= each.error <= each.error_high for each in results)
    widths = [np.mean([each.error_high - each.error_low for each in results]) for results in (few, many)]
    assert widths[1] < 0.6 * widths[0]
