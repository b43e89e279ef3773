"""The `likelihoods` step: log-probabilities that a policy gives to answers of its own and of other policies."""

from __future__ import annotations

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
from sacpo.planning.payloads import LikelihoodsPayload
from sacpo.planning.records import ReferenceMetrics
from sacpo.steps.policies import load_policy
from sacpo.steps.reference import log_probabilities


def run(job: Job[LikelihoodsPayload]) -> StepReport:
    """Write one row per answer of the parents `answers0`, `answers1`, ...

    Columns: `answers` (id of the `generate` step), `row` (number of the answer in its table) and `logp`: the sum over
    the answer's tokens as they were generated, the token that ended it included, in nats at temperature 1.

    Raises:
        StepError: the policy gives an answer no finite log-probability.
    """
    report = StepReport(devices=1)
    model, tokenizer = load_policy(job.parents, job.payload.q, job.payload.loading, share_base=True)
    rows: list[dict[str, Any]] = []
    for role in sorted((role for role in job.parents if role.startswith("answers")), key=lambda r: int(r[7:])):
        table = pq.read_table(job.parents[role] / RESPONSES, columns=["prompt", "answer_ids"]).to_pylist()
        rows += [{"answers": job.step.parents[role], "row": i, **answer} for i, answer in enumerate(table)]
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
    columns = {name: [row[name] for row in rows] for name in ("answers", "row")}
    pq.write_table(pa.table(columns | {"logp": pa.array(logps, pa.float64())}), job.folder / LIKELIHOODS)
    report.metrics = ReferenceMetrics(examples=len(rows), tokens=tokens, padding=slots - tokens)
    return report
