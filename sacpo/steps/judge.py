"""The steps `judge` (one criterion's verdicts on one side's answers against another's) and `canary` (canned pairs)."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sacpo.data.canaries import canned_pairs
from sacpo.data.prompts import Prompt
from sacpo.errors import StepError
from sacpo.execution.artifacts import CALIBRATION, RESPONSES, VERDICTS, part
from sacpo.execution.job import Facts, Job
from sacpo.judges import scalar
from sacpo.judges.noisy import noisy
from sacpo.judges.verdicts import DECIDED, Judge, Pair, Verdict, order_inconsistency
from sacpo.statistics.win_rate import estimates, prompt_means, win_rate

_EVEN_CONFIDENCE = 0.999  # a sound judge is stopped once in a thousand times
_ANYWAY = "--skip-canaries goes on anyway"
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
    ]
)


def run(job: Job) -> Facts:
    """Judge both sides' answers, paired by prompt and sample.

    The baseline against itself is the A/A canary.

    Raises:
        StepError: the two sides did not answer the same prompts, or the A/A canary found the judge partial.
    """
    facts = Facts()
    against_itself = job.parents["answers"] == job.parents["baseline"]
    pairs = _pairs(job)
    index, count = job.shard
    start, stop = (len(pairs) * i // count for i in (index, index + 1))
    verdicts = _judge(job, facts, a_a=against_itself)(pairs[start:stop])
    _write(job, pairs[start:stop], verdicts, facts)
    if against_itself:
        _even(verdicts, pairs)
    return facts


def canary(job: Job) -> Facts:
    """Try a judge on canned pairs, whose better answer plays the policy.

    Raises:
        StepError: nothing was decided, the judge loses (its sign is turned round), or it follows the order that answers
            are shown in; with what it said.
    """
    facts = Facts()
    canned = canned_pairs(job.payload["criterion"], job.payload["sentences"])
    pairs = [Pair(Prompt.of(p, "").prompt_id, "canary", 0, p, better, worse) for p, better, worse in canned]
    verdicts = _judge(job, facts, a_a=True)(pairs)
    _write(job, pairs, verdicts, facts)
    decided = [v for v in verdicts if v.outcome in DECIDED]
    name = f"the judge of {job.payload['criterion']} ({job.payload['judge']['kind']})"
    if not decided:
        raise StepError(f"{name} decided none of {len(pairs)} canned pairs; the first said: {_excerpt(verdicts[0])}")
    scores = [DECIDED[v.outcome] for v in decided]
    rate = win_rate(scores, [v.pair for v in decided])
    turned = order_inconsistency(((v.pair, v.repeat), v.order, v.outcome) for v in decided)
    facts.metrics |= {"canary_win_rate": rate.value, "canary_order_inconsistency": turned}
    if rate.high < 0.5:
        raise StepError(
            f"{name} prefers the worse answer of canned pairs (win rate of the better {rate.value:.2f}, at most "
            f"{rate.high:.2f}): its sign is turned round (`higher_is`), or it cannot judge; {_ANYWAY}"
        )
    if turned is not None and turned > 0.5:
        raise StepError(
            f"{name} follows the order that answers are shown in: on {turned:.0%} of canned pairs its verdict turned "
            f"with it; take another judge; {_ANYWAY}"
        )
    return facts


def _pairs(job: Job) -> list[Pair]:
    ours, theirs = (pq.read_table(job.parents[side] / RESPONSES).to_pylist() for side in ("answers", "baseline"))
    if [_key(row) for row in ours] != [_key(row) for row in theirs]:
        raise StepError("the policy and the baseline did not answer the same prompts")
    return [
        Pair(a["prompt_id"], a["category"], a["sample"], a["prompt"], a["response"], b["response"])
        for a, b in zip(ours, theirs, strict=True)
    ]


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["prompt_id"], row["sample"]


def _judge(job: Job, facts: Facts, a_a: bool) -> Judge:
    """The judge that the payload names. What it really used goes into `facts`, where that can differ."""
    judge, criterion = job.payload["judge"], job.payload["criterion"]
    settings = {key: value for key, value in judge.items() if key != "kind"}
    if judge["kind"] == "gold":
        return scalar.by_score(scalar.gold(criterion))
    if judge["kind"] == "noisy":
        return noisy(criterion, **settings)
    if judge["kind"] == "llm":
        from sacpo.judges.chat import chat

        return chat(job.payload, job.local, job.ledger, job.run, job.step_id, facts.effective, a_a)
    if judge["kind"] == "reward_model":
        score = scalar.reward_model(
            job.local["path"],
            revision=job.local["revision"],
            sign=1 if judge["higher_is"] == "better" else -1,
            template=judge["prompt_template"],
            max_length=judge["max_length"],
        )
        return scalar.by_score(score, tie_margin=judge["tie_margin"])
    score = scalar.reward_model(
        job.parents["model"],
        revision=None,
        sign=1,
        template=job.payload["prompt_template"],
        max_length=job.payload["max_length"],
    )
    calibration = json.loads((job.parents["model"] / CALIBRATION).read_text())
    return scalar.by_score(score, tie_margin=judge["tie_margin"], temperature=calibration["temperature"])


def _write(job: Job, pairs: list[Pair], verdicts: list[Verdict], facts: Facts) -> None:
    rows = []
    for verdict in verdicts:
        pair, row = pairs[verdict.pair], asdict(verdict)
        del row["pair"]
        rows.append({"prompt_id": pair.prompt_id, "category": pair.category, "sample": pair.sample, **row})
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), job.folder / part(VERDICTS, job.shard))
    facts.metrics |= {
        "verdicts": len(verdicts),
        "calls": sum(v.attempts for v in verdicts if v.order != "none"),
        "undecided": sum(v.outcome not in DECIDED for v in verdicts),
        "prompt_tokens": sum(v.prompt_tokens for v in verdicts),
        "completion_tokens": sum(v.completion_tokens for v in verdicts),
    }
    facts.ended = time.time()


def _even(verdicts: list[Verdict], pairs: list[Pair]) -> None:
    """The A/A canary: what is the same must win half of the time."""
    decided = [v for v in verdicts if v.outcome in DECIDED]
    if not decided:
        raise StepError(f"no verdict of {len(verdicts)} was decided; the first said: {_excerpt(verdicts[0])}")
    scores = [DECIDED[v.outcome] for v in decided]
    rate = estimates(prompt_means(scores, [pairs[v.pair].prompt_id for v in decided])[1][:, None], _EVEN_CONFIDENCE)[0]
    if not rate.low <= 0.5 <= rate.high:
        raise StepError(
            f"the judge is not even-handed: the baseline against itself wins {rate.value:.3f} ({rate.low:.3f} to "
            f"{rate.high:.3f} with {_EVEN_CONFIDENCE:.1%} confidence), not 0.5; {_ANYWAY}"
        )


def _excerpt(verdict: Verdict) -> str:
    return f"{verdict.outcome}: {verdict.raw[:200]!r}"
