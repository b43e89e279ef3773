"""The `reference` step: a policy's log-probabilities of a preference set's completions, computed once.

A DPO or KTO stage compares the policy that it trains with the policy that it started from. The latter's
log-probabilities never change, so they are stored here for every KL parameter, seed and epoch, and no reference model
is loaded where the stage trains (TRL's `precompute_ref_log_probs` computes the same in every stage). KTO estimates its
KL term on completions of other prompts. Each example is paired with one such completion, the same in every epoch and
for every seed, so that these log-probabilities can be stored too.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sacpo.execution.artifacts import EXAMPLES, REFERENCE, shard_name
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.planning.metrics import ReferenceMetrics
from sacpo.planning.payloads import ReferencePayload
from sacpo.steps.packed_model import PackedModel, equal_nats, is_known, obstacle
from sacpo.steps.policies import load_policy

_LOG = logging.getLogger(__name__)


def run(job: Job[ReferencePayload]) -> StepReport:
    """Write one row per example, in the order of the data step's examples.

    Columns: `example` (row number), and for pairs `ref_chosen_logps` and `ref_rejected_logps`; for labelled examples
    `ref_logps`, `partner` (row number of the example whose completion the KL term takes) and `ref_KL_logps`. All are
    sums over the completion's tokens, in nats.
    """
    report = StepReport(devices=1)
    examples = pq.read_table(job.parents["data"] / EXAMPLES)
    index, count = job.shard
    numbers = range(len(examples) * index // count, len(examples) * (index + 1) // count)
    columns: dict[str, Any] = {"example": list(numbers)}
    own = examples.slice(numbers.start, len(numbers))
    if job.payload.shape == "pairs":
        completions = {f"ref_{name}_logps": own[f"{name}_ids"].to_pylist() for name in ("chosen", "rejected")}
    else:
        columns["partner"] = kl_partners(examples["prompt_ids"])[numbers.start : numbers.stop]
        partners = examples["completion_ids"].take(pa.array(columns["partner"], pa.int64()))
        completions = {"ref_logps": own["completion_ids"].to_pylist(), "ref_KL_logps": partners.to_pylist()}
    prompts = own["prompt_ids"].to_pylist()
    sequences = [pair for column in completions.values() for pair in zip(prompts, column, strict=True)]
    model, tokenizer = load_policy(job.parents, loading=job.payload.loading)
    report.first_update_at = time.time()
    logps, tokens, slots = log_probabilities(
        model,
        sequences,
        job.resources.per_device_batch,
        tokenizer.pad_token_id,
        job.payload.max_length,
        packing=job.resources.packing,
    )
    for k, name in enumerate(completions):
        columns[name] = pa.array(logps[k * len(numbers) : (k + 1) * len(numbers)], pa.float32())
    pq.write_table(pa.table(columns), job.folder / shard_name(REFERENCE, job.shard))
    report.metrics = ReferenceMetrics(examples=len(numbers), tokens=tokens, padding=slots - tokens)
    return report


def kl_partners(prompts: pa.ChunkedArray) -> list[int]:
    """For each example another example with another prompt; each is a partner once as far as prompts allow.

    Args:
        prompts: The token ids of each example's prompt.
    """
    numbers = _prompt_numbers(prompts)
    order = np.random.default_rng(0).permutation(len(numbers)).tolist()
    partners = [0] * len(numbers)
    for k, i in enumerate(order):
        others = (order[(k + step) % len(order)] for step in range(1, len(order)))
        partners[i] = next((j for j in others if numbers[j] != numbers[i]), order[(k + 1) % len(order)])
    return partners


def _prompt_numbers(prompts: pa.ChunkedArray) -> list[int]:
    """A number for each prompt, the same for equal ones. Token ids do not become Python objects."""
    digests: list[bytes] = []
    for chunk in filter(len, prompts.chunks):
        ends = chunk.value_lengths().to_numpy().cumsum()
        parts = np.split(chunk.flatten().to_numpy(), ends[:-1])
        digests += [hashlib.blake2b(part.tobytes(), digest_size=16).digest() for part in parts]
    numbers: list[int] = pa.array(digests, pa.binary(16)).dictionary_encode().indices.to_pylist()
    return numbers


@torch.no_grad()
def log_probabilities(
    model: Any,
    sequences: list[tuple[list[int], list[int]]],
    batch_size: int,
    pad: int,
    max_length: int,
    *,
    packing: bool = True,
) -> tuple[list[float], int, int]:
    """Log-probability of each completion after its prompt.

    Args:
        model: A causal language model.
        sequences: (prompt ids, completion ids).
        batch_size: Sequences in one forward pass.
        pad: Id of the padding token.
        max_length: Tokens of a sequence; longer ones are cut, as TRL's collators do (KTO's partners may be longer).
        packing: Pack the sequences where the model gives the same results; a model of a type that is not known to is
            compared on the first forward pass.

    Returns:
        Sums over the completions' tokens in nats, in the given order, and the numbers of tokens that were computed
        without and with padding.
    """
    computed = np.zeros(2, int)

    def count(tokens: int, slots: int) -> None:
        computed[:] += (tokens, slots)

    packed = PackedModel(model, pad, count)
    whole = [((prompt + answer)[:max_length], len(prompt)) for prompt, answer in sequences]
    results = [0.0] * len(whole)
    for k, batch in enumerate(answer_batches(sequences, batch_size)):
        texts = [whole[i] for i in batch]
        if k == 0:
            packing = packing and packs(packed, texts, max_length)
            computed[:] = 0
        for i, value in zip(batch, packed.answer_sums(texts, packing=packing), strict=True):
            results[i] = value
    packed.answers.handle.remove()
    return results, int(computed[0]), int(computed[1])


def answer_batches(sequences: list[tuple[list[int], list[int]]], batch_size: int) -> Iterator[list[int]]:
    """Numbers of the sequences, batch by batch; the longest first, those of one prompt beside each other."""
    longest: dict[tuple[int, ...], int] = {}
    for prompt, answer in sequences:
        key = tuple(prompt)
        longest[key] = max(longest.get(key, 0), len(prompt) + len(answer))
    prompts = [tuple(prompt) for prompt, _ in sequences]
    order = sorted(range(len(sequences)), key=lambda i: (-longest[prompts[i]], prompts[i]))
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def packs(packed: PackedModel, texts: list[tuple[list[int], int]], max_length: int) -> bool:
    """Whether a model gives the same sums packed and padded; a model of a type that is not known to is compared.

    Args:
        packed: The model.
        texts: (token ids, place of the first answer token) to compare on.
        max_length: Tokens of the longest sequence.
    """
    return obstacle(packed.model, max_length) is None and (is_known(packed.model) or _same_packed(packed, texts))


def _same_packed(packed: PackedModel, texts: list[tuple[list[int], int]]) -> bool:
    """Whether packed sums equal padded ones; a model may refuse packed rows with any error."""
    padded = packed.answer_sums(texts, packing=False)
    try:
        values = packed.answer_sums(texts, packing=True)
    except Exception as error:
        _LOG.warning("sequences are padded, not packed: the model refuses packed rows (%s)", type(error).__name__)
        return False
    tokens = [len(ids) - start for ids, start in texts]
    limit = equal_nats(packed.model.dtype)
    same = all(abs(a - b) <= limit * max(1, n) for a, b, n in zip(values, padded, tokens, strict=True))
    if not same:
        _LOG.warning("sequences are padded, not packed: the model gives other results with packed rows")
    return same
