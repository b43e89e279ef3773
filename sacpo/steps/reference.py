"""The `reference` step: a policy's log-probabilities of a preference set's completions, computed once.

A DPO or KTO stage compares the policy that it trains with the policy that it started from. The latter's
log-probabilities never change, so they are stored here for every KL parameter, seed and epoch, and no reference model
is loaded where the stage trains (TRL's `precompute_ref_log_probs` computes the same in every stage). KTO estimates its
KL term on completions of other prompts. Each example is paired with one such completion, the same in every epoch and
for every seed, so that these log-probabilities can be stored too.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sacpo.data.batching import batches_by_length
from sacpo.execution.artifacts import EXAMPLES, REFERENCE, shard_name
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.planning.payloads import ReferencePayload
from sacpo.planning.records import ReferenceMetrics
from sacpo.steps.policies import load_policy


def run(job: Job[ReferencePayload]) -> StepReport:
    """Write one row per example, in the order of the data step's examples.

    Columns: `example` (row number), and for pairs `ref_chosen_logps` and `ref_rejected_logps`; for labelled examples
    `ref_logps`, `partner` (row number of the example whose completion the KL term takes) and `ref_KL_logps`. All are
    sums over the completion's tokens, in nats.
    """
    report = StepReport(devices=1)
    examples = pq.read_table(job.parents["data"] / EXAMPLES).to_pylist()
    index, count = job.shard
    numbers = range(len(examples) * index // count, len(examples) * (index + 1) // count)
    columns: dict[str, Any] = {"example": list(numbers)}
    if job.payload.shape == "pairs":
        completions = {"ref_chosen_logps": [examples[i]["chosen_ids"] for i in numbers]}
        completions["ref_rejected_logps"] = [examples[i]["rejected_ids"] for i in numbers]
    else:
        partners = kl_partners([row["prompt_ids"] for row in examples])
        columns["partner"] = [partners[i] for i in numbers]
        completions = {"ref_logps": [examples[i]["completion_ids"] for i in numbers]}
        completions["ref_KL_logps"] = [examples[partners[i]]["completion_ids"] for i in numbers]
    sequences = [
        (examples[i]["prompt_ids"], completion)
        for column in completions.values()
        for i, completion in zip(numbers, column, strict=True)
    ]
    model, tokenizer = load_policy(job.parents, loading=job.payload.loading)
    report.first_update_at = time.time()
    logps, computed_tokens = log_probabilities(
        model, sequences, job.resources.per_device_batch, tokenizer.pad_token_id, job.payload.max_length
    )
    for k, name in enumerate(completions):
        columns[name] = pa.array(logps[k * len(numbers) : (k + 1) * len(numbers)], pa.float32())
    pq.write_table(pa.table(columns), job.folder / shard_name(REFERENCE, job.shard))
    tokens = sum(min(len(prompt) + len(completion), job.payload.max_length) for prompt, completion in sequences)
    report.metrics = ReferenceMetrics(examples=len(numbers), tokens=tokens, padding=computed_tokens - tokens)
    return report


def kl_partners(prompts: list[list[int]]) -> list[int]:
    """For each example another example with another prompt; each is a partner once as far as prompts allow."""
    order = np.random.default_rng(0).permutation(len(prompts)).tolist()
    partners = [0] * len(prompts)
    for k, i in enumerate(order):
        others = (order[(k + step) % len(order)] for step in range(1, len(order)))
        partners[i] = next((j for j in others if prompts[j] != prompts[i]), order[(k + 1) % len(order)])
    return partners


@torch.no_grad()
def log_probabilities(
    model: Any, sequences: list[tuple[list[int], list[int]]], batch_size: int, pad: int, max_length: int
) -> tuple[list[float], int]:
    """Log-probability of each completion after its prompt, batched by length.

    Args:
        model: A causal language model.
        sequences: (prompt ids, completion ids).
        batch_size: Sequences in one forward pass.
        pad: Id of the padding token.
        max_length: Tokens of a sequence; longer ones are cut, as TRL's collators do (KTO's partners may be longer).

    Returns:
        Sums over the completions' tokens in nats, in the given order, and the number of tokens that were computed,
        padding included.
    """
    results, computed_tokens = [0.0] * len(sequences), 0
    for batch in batches_by_length([len(prompt) + len(answer) for prompt, answer in sequences], batch_size):
        rows = [(sequences[i][0] + sequences[i][1])[:max_length] for i in batch]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=model.device)
        positions = torch.arange(width, device=model.device)
        lengths = torch.tensor([len(row) for row in rows], device=model.device)[:, None]
        starts = torch.tensor([len(sequences[i][0]) for i in batch], device=model.device)[:, None]
        mask = (positions < lengths).long()
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        token_logps = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
        completion = (positions >= starts) & (positions < lengths)
        for i, value in zip(batch, (token_logps * completion[:, 1:]).sum(1).tolist(), strict=True):
            results[i] = value
        computed_tokens += ids.numel()
    return results, computed_tokens
