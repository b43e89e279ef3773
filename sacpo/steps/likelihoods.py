"""The `likelihoods` step: log-probabilities that a policy gives to answers of its own and of other policies.

The values of each pair of a policy and a `generate` step are also kept in the store by themselves, at
`likelihoods/<generate step>/<hash>.parquet`. When a policy joins a family, the family's steps get new ids, and compute
the new pairs only.
"""

from __future__ import annotations

import io
import math
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sacpo.data.tokenise import encode, render
from sacpo.errors import StepError
from sacpo.execution.artifacts import LIKELIHOODS, RESPONSES
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.hashing import content_id
from sacpo.planning.metrics import ReferenceMetrics
from sacpo.planning.payloads import LikelihoodsPayload, hashed
from sacpo.steps.policies import load_policy
from sacpo.steps.reference import log_probabilities

Row = dict[str, Any]


def run(job: Job[LikelihoodsPayload]) -> StepReport:
    """Write one row per answer of the parents `answers0`, `answers1`, ...

    Columns: `answers` (id of the `generate` step), `row` (number of the answer in its table) and `logp`: the sum over
    the answer's tokens as they were generated, the token that ended it included, in nats at temperature 1. The metrics
    count the answers that were computed, without those of stored pairs.

    Raises:
        StepError: the policy gives an answer no finite log-probability.
    """
    report = StepReport(devices=1)
    tables: dict[str, list[Row]] = {}
    for role in sorted((role for role in job.parents if role.startswith("answers")), key=lambda r: int(r[7:])):
        table = pq.read_table(job.parents[role] / RESPONSES, columns=["prompt", "answer_ids"])
        tables[job.step.parents[role]] = table.to_pylist()
    files = job.store.files
    pairs = {step: _stored(files.read(_key(job, step)), len(rows)) for step, rows in tables.items()}
    new = [step for step, logps in pairs.items() if logps is None]
    report.first_update_at = time.time()
    report.metrics = ReferenceMetrics(examples=0, tokens=0, padding=0)
    if new:
        values = iter(_computed(job, [row for step in new for row in tables[step]], report))
        for step in new:
            pairs[step] = logps = [next(values) for _ in tables[step]]
            files.write(_key(job, step), _content(logps))
    columns = {
        "answers": [step for step, rows in tables.items() for _ in rows],
        "row": [number for rows in tables.values() for number in range(len(rows))],
        "logp": pa.array([logp for logps in pairs.values() for logp in logps or ()], pa.float64()),
    }
    pq.write_table(pa.table(columns), job.folder / LIKELIHOODS)
    return report


def _computed(job: Job[LikelihoodsPayload], rows: list[Row], report: StepReport) -> list[float]:
    """Each answer's log-probability; the report gets the start of the work and its metrics."""
    model, tokenizer = load_policy(job.parents, job.payload.q, loading=job.payload.loading, share_base=True)
    template = job.payload.prompt_template
    texts = [render(row["prompt"], tokenizer=tokenizer, template=template) for row in rows]
    prompts = encode(texts, tokenizer=tokenizer, template=template)
    sequences = [(prompt, row["answer_ids"]) for prompt, row in zip(prompts, rows, strict=True)]
    longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
    report.first_update_at = time.time()
    logps, tokens, slots = log_probabilities(
        model,
        sequences,
        job.resources.per_device_batch,
        tokenizer.pad_token_id,
        longest,
        packing=job.resources.packing,
    )
    if not all(map(math.isfinite, logps)):
        raise StepError("the policy gives an answer no finite log-probability; its weights are damaged or overflow")
    report.metrics = ReferenceMetrics(examples=len(rows), tokens=tokens, padding=slots - tokens)
    return logps


def _key(job: Job[LikelihoodsPayload], answers: str) -> str:
    """Where the store keeps the values of one pair; all that can change them is in the hash."""
    policy = {role: step for role, step in job.step.parents.items() if not role.startswith("answers")}
    content = {"recipe": job.step.recipe, "payload": hashed(job.payload), "policy": policy, "answers": answers}
    return f"likelihoods/{answers}/{content_id('pair', content)}.parquet"


def _content(logps: list[float]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"logp": pa.array(logps, pa.float64())}), buffer, write_page_checksum=True)
    return buffer.getvalue()


def _stored(content: bytes | None, count: int) -> list[float] | None:
    """The values of a stored pair; None if there is none, or if it is damaged."""
    if content is None:
        return None
    try:
        table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None
    return table["logp"].to_pylist() if len(table) == count else None
