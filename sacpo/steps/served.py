"""The `served` step: answers of a policy that is served elsewhere, from an OpenAI-compatible endpoint."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sacpo.errors import StepError
from sacpo.execution.artifacts import RESPONSES
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.judges.answers import AnswerEndpoint, Question, answers
from sacpo.judges.call_batch import CallStats, Reply
from sacpo.judges.completions import printable
from sacpo.judges.ledger import ANSWER
from sacpo.planning.metrics import GenerateMetrics
from sacpo.planning.records import ServedEffective
from sacpo.planning.served import ServedPayload

_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("category", pa.string()),
        ("prompt", pa.string()),
        ("sample", pa.int64()),
        ("response", pa.string()),
        ("tokens", pa.int64()),
        ("finished", pa.bool_()),
        ("missing", pa.string()),
    ]
)


def run(job: Job[ServedPayload]) -> StepReport:
    """Ask the endpoint for every answer. One that it refuses is missing, with the reason; it is never an empty text.

    Raises:
        StepError: the endpoint cannot be used; a call had no reply in any attempt, so that a later run can have it; or
            every answer was refused. The answers so far are stored.
        BudgetExceeded: a limit of the run is reached, or the account's quota is used up.
    """
    report = StepReport()
    payload = job.payload
    report.first_update_at = time.time()
    asked = [(prompt, sample) for prompt in job.prompts for sample in range(payload.generation.samples)]
    replies, stats, endpoint = answers(
        [Question(prompt.text, sample) for prompt, sample in asked],
        payload.policy,
        payload.generation,
        ledger=job.store.ledger,
        run=job.run,
        writer=job.step.id,
    )
    _refuse_failures(replies, payload.policy.model)
    rows = [
        {"prompt_id": prompt.prompt_id, "category": prompt.category, "prompt": prompt.text, "sample": sample}
        | _answer(reply)
        for (prompt, sample), reply in zip(asked, replies, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), job.folder / RESPONSES)
    answered = [row for row in rows if row["response"] is not None]
    report.effective = _effective(stats, endpoint)
    report.metrics = GenerateMetrics(
        responses=len(answered),
        tokens=sum(row["tokens"] or 0 for row in answered),
        finished_fraction=sum(reply.outcome == ANSWER and not reply.cut for reply in replies) / len(answered),
        missing=len(rows) - len(answered),
    )
    return report


def _answer(reply: Reply) -> dict[str, Any]:
    """The columns of one answer; null without one, and its tokens are null where the endpoint counts none."""
    if reply.outcome != ANSWER:
        return {"response": None, "tokens": None, "finished": None, "missing": printable(reply.raw)}
    tokens = reply.completion_tokens or None
    return {"response": reply.raw, "tokens": tokens, "finished": not reply.cut, "missing": ""}


def _refuse_failures(replies: list[Reply], model: str) -> None:
    """Fail if a call had no reply that a later run could have, or if there is no answer at all."""
    failed = [reply for reply in replies if reply.outcome != ANSWER]
    open_calls = [reply for reply in failed if not reply.refused]
    if open_calls:
        raise StepError(
            f"{len(open_calls)} of {len(replies)} answers of {model} are not there yet: {open_calls[0].raw}; the "
            "others are stored: run the same command to continue, or leave a prompt that fails every time out of the "
            "evaluation's prompts"
        )
    if len(failed) == len(replies):
        raise StepError(f"the endpoint refused all {len(replies)} answers of {model}: {failed[0].raw}")


def _effective(stats: CallStats, endpoint: AnswerEndpoint) -> ServedEffective:
    """What the endpoint states of itself, and the parameters that it took."""
    sampling = {name: value for name, value in endpoint.sampling().items() if name not in stats.left_out}
    return ServedEffective(sampling=sampling, **stats.facts())
