"""The `judge` step: verdicts of one judge on the answers of two policies."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, assert_never

import pyarrow as pa
import pyarrow.parquet as pq

from sacpo.errors import StepError
from sacpo.execution.artifacts import RESPONSES, VERDICTS, read_stopped, shard_name
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.judges import scalar
from sacpo.judges.annotations import from_annotations, read_annotations
from sacpo.judges.call_batch import CallStats
from sacpo.judges.completions import printable
from sacpo.judges.noisy import noisy
from sacpo.judges.thoughts import without_thoughts
from sacpo.judges.verdicts import SCORES, AnswerPair, JudgeFunction, Verdict
from sacpo.planning.judge_payloads import JudgePayload, LLMInstructions, Round, TrainedModelFormat
from sacpo.planning.metrics import JudgeMetrics, TrainMetrics
from sacpo.planning.records import JudgeEffective
from sacpo.spaces.evaluation import AnnotationsJudge, GoldJudge, LLMJudge, NoisyJudge, RewardModelJudge, TrainedJudge
from sacpo.statistics.win_rate import estimates, prompt_means

_Row = dict[str, Any]
_A_A_CONFIDENCE = 0.999  # a sound judge is stopped once in a thousand times
SKIP = "--skip-canaries continues without this check"
"""The way out of every canary."""
_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("category", pa.string()),
        ("sample", pa.int64()),
        ("order", pa.string()),
        ("repeat", pa.int64()),
        ("outcome", pa.string()),
        ("raw", pa.string()),
        ("p_win", pa.float64()),
        ("latency", pa.float64()),
        ("attempts", pa.int64()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("refused", pa.bool_()),
        ("score", pa.float64()),
        ("no_verdict_mass", pa.float64()),
    ]
)


def run(job: Job[JudgePayload]) -> StepReport:
    """Judge both sides' answers, paired by prompt and sample. The baseline against itself is the A/A canary.

    A pair of which an answer is missing is not judged; its verdict is `unavailable`, with the reason.

    Raises:
        StepError: the two sides did not answer the same prompts, or by the A/A canary the judge is biased.
    """
    report = StepReport(effective=JudgeEffective())
    is_a_a = job.parents["answers"] == job.parents["baseline"]
    ours, theirs = _answers(job)
    pairs = _of_round(_pairs(ours, theirs), job.payload.round)
    index, count = job.shard
    start, stop = (len(pairs) * i // count for i in (index, index + 1))
    if _is_stopped(job):
        report.metrics = write_verdicts(job, [], []).model_copy(update={"not_asked": stop - start})
        return report
    pairs = pairs[start:stop]
    missing = {_key(row): row["missing"] for row in (*ours, *theirs) if row["response"] is None}
    answered = [i for i, pair in enumerate(pairs) if (pair.prompt_id, pair.sample) not in missing]
    judged = make_judge(job, report, ask_equal=is_a_a)([pairs[i] for i in answered]) if answered else []
    verdicts = [replace(verdict, pair=answered[verdict.pair]) for verdict in judged]
    verdicts += [
        Verdict(i, "none", 0, "unavailable", f"a policy gave no answer: {missing[key]}", attempts=0)
        for i, pair in enumerate(pairs)
        if (key := (pair.prompt_id, pair.sample)) in missing
    ]
    verdicts.sort(key=lambda verdict: verdict.pair)
    metrics = write_verdicts(job, pairs, verdicts)
    report.metrics = metrics.model_copy(update={"unanswered": len(pairs) - len(answered)})
    report.ended_at = time.time()
    if is_a_a:
        _check_even(verdicts, pairs)
    return report


def _answers(job: Job[JudgePayload]) -> tuple[list[_Row], list[_Row]]:
    """The policy's and the baseline's rows of `responses.parquet`, which are about the same prompts and samples."""
    ours, theirs = (pq.read_table(job.parents[side] / RESPONSES).to_pylist() for side in ("answers", "baseline"))
    if [_key(row) for row in ours] != [_key(row) for row in theirs]:
        raise StepError("the policy and the baseline did not answer the same prompts")
    return ours, theirs


def _pairs(ours: list[_Row], theirs: list[_Row]) -> list[AnswerPair]:
    """Both sides' answers without the thoughts of a reasoning model, which are no part of the answer.

    A missing answer is empty.
    """
    return [
        AnswerPair(
            a["prompt_id"],
            a["category"],
            a["sample"],
            a["prompt"],
            without_thoughts(a["response"] or ""),
            without_thoughts(b["response"] or ""),
        )
        for a, b in zip(ours, theirs, strict=True)
    ]


def _of_round(pairs: list[AnswerPair], this_round: Round | None) -> list[AnswerPair]:
    """The pairs whose prompts are asked in a round."""
    if this_round is None:
        return pairs
    asked = set(this_round.of({pair.prompt_id: pair.category for pair in pairs}))
    return [pair for pair in pairs if pair.prompt_id in asked]


def _is_stopped(job: Job[JudgePayload]) -> bool:
    """Whether the race before this round has stopped the policy."""
    if job.payload.round is None or "race" not in job.parents:
        return False
    return job.payload.round.trial in read_stopped(job.parents["race"])


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["prompt_id"], row["sample"]


def make_judge(job: Job[Any], report: StepReport, ask_equal: bool) -> JudgeFunction:
    """The judge that the payload names.

    Args:
        job: The job.
        report: An LLM judge notes its effective settings there.
        ask_equal: Whether a judge that costs calls is asked about two equal answers too; otherwise they are a tie.
    """
    payload: JudgePayload = job.payload
    judge, criterion = payload.judge, payload.criterion
    probabilities = judge.verdicts == "probabilities"
    match judge:
        case GoldJudge():
            return scalar.by_score(scalar.gold(criterion), probabilities=probabilities)
        case NoisyJudge():
            return noisy(
                criterion,
                error=judge.error,
                order_bias=judge.order_bias,
                repeats=judge.repeats,
                seed=judge.seed,
                probabilities=probabilities,
            )
        case LLMJudge():
            from sacpo.judges.chat import chat  # imports openai

            assert isinstance(payload.inputs, LLMInstructions)
            return chat(
                judge,
                rubric=payload.inputs.rubric,
                criterion=criterion,
                ledger=job.store.ledger,
                run=job.run,
                writer=job.step.id,
                report_stats=lambda stats: _report_calls(report, stats),
                ask_equal=ask_equal,
            )
        case RewardModelJudge():
            score = scalar.reward_model(
                judge.path,
                revision=judge.revision,
                sign=1 if judge.higher_is == "better" else -1,
                template=judge.prompt_template,
                max_length=judge.max_length,
                output=judge.output,
            )
            return scalar.by_score(
                score, tie_margin=judge.tie_margin, probabilities=probabilities, unscored=scalar.TOO_LONG
            )
        case TrainedJudge():
            assert isinstance(payload.inputs, TrainedModelFormat)
            score = scalar.reward_model(
                job.parents["model"],
                revision=None,
                sign=1,
                template=payload.inputs.prompt_template,
                max_length=payload.inputs.max_length,
            )
            temperature = _temperature(job)
            return scalar.by_score(
                score,
                tie_margin=judge.tie_margin,
                temperature=temperature,
                probabilities=probabilities,
                unscored=scalar.TOO_LONG,
            )
        case AnnotationsJudge():
            return from_annotations(read_annotations(Path(judge.path)), probabilities=probabilities)
        case _:
            assert_never(judge)


def _report_calls(report: StepReport, stats: CallStats) -> None:
    """Record how an LLM judge's endpoint describes itself, and the calls that were made."""
    report.effective = JudgeEffective(structured=stats.structured, **stats.facts())


def _temperature(job: Job[Any]) -> float:
    """The calibration temperature of a trained judge, from the record of its training."""
    record = next(record for record in job.parent_records if record.step_id == job.step.parents["model"])
    assert isinstance(record.metrics, TrainMetrics)
    assert record.metrics.judge is not None, "reward models are measured on held-out pairs"
    return record.metrics.judge.temperature


def write_verdicts(job: Job[Any], pairs: list[AnswerPair], verdicts: list[Verdict]) -> JudgeMetrics:
    """Write `verdicts.parquet`; returns its counts."""
    rows = []
    for verdict in verdicts:
        pair, row = pairs[verdict.pair], asdict(verdict)
        del row["pair"]
        row["raw"] = printable(row["raw"])
        rows.append({"prompt_id": pair.prompt_id, "category": pair.category, "sample": pair.sample, **row})
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), job.folder / shard_name(VERDICTS, job.shard))
    return JudgeMetrics(
        verdicts=len(verdicts),
        calls=sum(v.attempts for v in verdicts if v.order != "none"),
        undecided=sum(v.outcome not in SCORES for v in verdicts),
        prompt_tokens=sum(v.prompt_tokens for v in verdicts),
        completion_tokens=sum(v.completion_tokens for v in verdicts),
        refused=sum(v.refused for v in verdicts),
    )


def _check_even(verdicts: list[Verdict], pairs: list[AnswerPair]) -> None:
    """The A/A canary: equal answers must win half of the time.

    Raises:
        StepError: no verdict was decided, or the win rate differs from 0.5 by more than chance explains.
    """
    decided = [v for v in verdicts if v.outcome in SCORES]
    if not decided:
        raise StepError(
            f"none of {len(verdicts)} verdicts was decided; the judge's first reply was {excerpt(verdicts[0])}"
        )
    means = prompt_means([v.decided_score for v in decided], [pairs[v.pair].prompt_id for v in decided])[1]
    rate = estimates(means[:, None], _A_A_CONFIDENCE)[0]
    if not rate.low <= 0.5 <= rate.high:
        raise StepError(
            f"the judge is not even-handed: the baseline against itself wins {rate.value:.3f} ({rate.low:.3f} to "
            f"{rate.high:.3f} with {_A_A_CONFIDENCE:.1%} confidence), not 0.5; {SKIP}"
        )


def excerpt(verdict: Verdict) -> str:
    """A verdict's outcome and the beginning of the reply, for errors."""
    return f"{verdict.outcome}: {verdict.raw[:200]!r}"
