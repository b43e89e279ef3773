"""The `judge` step: one criterion's verdicts on a policy's answers against the baseline's."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sacpo.errors import StepError
from sacpo.judges import scalar
from sacpo.steps.files import RESPONSES, VERDICTS
from sacpo.steps.job import Facts, Job


def run(job: Job) -> Facts:
    """Score both sides' answers, paired by prompt and sample, and write one verdict a pair.

    Raises:
        StepError: the two sides did not answer the same prompts.
    """
    facts = Facts()
    judge = job.payload["judge"]
    answers = pq.read_table(job.parents["answers"] / RESPONSES).to_pylist()
    baseline = pq.read_table(job.parents["baseline"] / RESPONSES).to_pylist()
    if [_key(row) for row in answers] != [_key(row) for row in baseline]:
        raise StepError("the policy and the baseline did not answer the same prompts")
    score = _judge(job)
    facts.first_work = time.time()
    ours = score([(row["prompt"], row["response"]) for row in answers])
    theirs = score([(row["prompt"], row["response"]) for row in baseline])
    seconds = (time.time() - facts.first_work) / len(answers)
    rows = [
        {
            "prompt_id": row["prompt_id"],
            "category": row["category"],
            "sample": row["sample"],
            "order": "none",
            "outcome": scalar.outcome(a, b, judge.get("tie_margin", 0.0)),
            "raw": f"{a:.6g} {b:.6g}",
            "judge": judge["kind"],
            "latency": seconds,
            "attempts": 1,
        }
        for row, a, b in zip(answers, ours, theirs, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows), job.folder / VERDICTS)
    facts.metrics = {"verdicts": len(rows), "unavailable": sum(row["outcome"] == "unavailable" for row in rows)}
    return facts


def _judge(job: Job) -> scalar.Score:
    judge: dict[str, Any] = job.payload["judge"]
    if judge["kind"] == "gold":
        return scalar.gold(job.payload["criterion"])
    if judge["kind"] == "reward_model":
        return scalar.reward_model(
            job.local["path"],
            revision=job.local["revision"],
            sign=1 if judge["higher_is"] == "better" else -1,
            template=judge["prompt_template"],
            max_length=judge["max_length"],
        )
    return scalar.reward_model(
        job.parents["model"],
        revision=None,
        sign=1,
        template=job.payload["prompt_template"],
        max_length=job.payload["max_length"],
    )


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["prompt_id"], row["sample"]
