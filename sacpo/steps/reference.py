"""The `reference` step: a policy's log-probabilities of a preference set's completions, computed once.

A DPO or KTO stage compares the policy that it trains with the one that it started from. What the latter gives to an
example never changes, so it is stored here for every KL parameter, seed and epoch, and no reference model is loaded
where the stage trains. KTO estimates its KL term on completions of other prompts; each example has one partner for
that, the same in every epoch and for every seed, so that these too can be stored.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sacpo.execution.artifacts import EXAMPLES, REFERENCE, part
from sacpo.execution.job import Facts, Job
from sacpo.steps.model import load_policy


def run(job: Job) -> Facts:
    """Write one row an example, in the order of the data step's examples.

    Columns: `example` (row number), and for pairs `ref_chosen_logps` and `ref_rejected_logps`; for labelled examples
    `ref_logps`, `partner` (row number of the example whose completion the KL term takes) and `ref_KL_logps`. All are
    sums over the completion's tokens, in nats.
    """
    facts = Facts(devices=1)
    rows = pq.read_table(job.parents["data"] / EXAMPLES).to_pylist()
    index, count = job.shard
    mine = range(len(rows) * index // count, len(rows) * (index + 1) // count)
    columns: dict[str, Any] = {"example": list(mine)}
    if job.payload["shape"] == "pairs":
        wanted = {"ref_chosen_logps": [rows[i]["chosen_ids"] for i in mine]}
        wanted["ref_rejected_logps"] = [rows[i]["rejected_ids"] for i in mine]
    else:
        partners = kl_partners([row["prompt_ids"] for row in rows])
        columns["partner"] = [partners[i] for i in mine]
        wanted = {"ref_logps": [rows[i]["completion_ids"] for i in mine]}
        wanted["ref_KL_logps"] = [rows[partners[i]]["completion_ids"] for i in mine]
    sequences = [
        (rows[i]["prompt_ids"], completion)
        for completions in wanted.values()
        for i, completion in zip(mine, completions, strict=True)
    ]
    model, tokenizer = load_policy(job.parents)
    facts.first_update_at = time.time()
    found, slots = log_probabilities(
        model, sequences, job.resources["per_device_batch"], tokenizer.pad_token_id, job.payload["max_length"]
    )
    for k, name in enumerate(wanted):
        columns[name] = pa.array(found[k * len(mine) : (k + 1) * len(mine)], pa.float32())
    pq.write_table(pa.table(columns), job.folder / part(REFERENCE, job.shard))
    tokens = sum(min(len(prompt) + len(completion), job.payload["max_length"]) for prompt, completion in sequences)
    facts.metrics = {"examples": len(mine), "tokens": tokens, "padding": slots - tokens}
    return facts


def kl_partners(prompts: list[list[int]]) -> list[int]:
    """For each example another one with another prompt, each example being partner once as far as prompts allow."""
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
        pad: Id that fills rows up.
        max_length: Tokens of a sequence; what is beyond is cut, as TRL's collators do (KTO's partners may be longer).

    Returns:
        Sums over the completions' tokens in nats, in the given order, and how many token places were computed.
    """
    results, slots = [0.0] * len(sequences), 0
    queue = sorted(range(len(sequences)), key=lambda i: -len(sequences[i][0]) - len(sequences[i][1]))
    for start in range(0, len(queue), batch_size):
        batch = queue[start : start + batch_size]
        rows = [(sequences[i][0] + sequences[i][1])[:max_length] for i in batch]
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=model.device)
        places = torch.arange(width, device=model.device)
        lengths = torch.tensor([len(row) for row in rows], device=model.device)[:, None]
        begins = torch.tensor([len(sequences[i][0]) for i in batch], device=model.device)[:, None]
        logits = model(input_ids=ids, attention_mask=(places < lengths).long(), use_cache=False).logits[:, :-1].float()
        chosen = logits.gather(-1, ids[:, 1:, None]).squeeze(-1) - logits.logsumexp(-1)
        completion = (places >= begins) & (places < lengths)
        for i, value in zip(batch, (chosen * completion[:, 1:]).sum(1).tolist(), strict=True):
            results[i] = value
        slots += ids.numel()
    return results, slots
