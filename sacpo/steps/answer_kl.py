"""KL divergence from a policy to the SFT policy on the policy's own answers, for several answers in a forward pass."""

from __future__ import annotations

from typing import Any

import torch

from sacpo.steps.logit_mix import LogitMix, mixed
from sacpo.steps.packed_model import HEAD_TOKENS, PackedModel, sums_by_answer
from sacpo.steps.reference import answer_batches, packs

_PASS_TOKENS = 2048  # answer tokens of a forward pass at most, since two models' logits of them are held at once


@torch.no_grad()
def answer_kl(
    policy: Any,
    sft: Any,
    sequences: list[tuple[list[int], list[int]]],
    batch_size: int,
    pad: int,
    *,
    packing: bool = True,
) -> list[float]:
    """The sum over each answer's tokens of the exact KL(policy || SFT) between next-token distributions, in nats.

    Args:
        policy: A causal language model, or a mixture of two.
        sft: The SFT policy, of the same architecture.
        sequences: (prompt ids, answer ids).
        batch_size: Answers in one forward pass at most.
        pad: Id of the padding token.
        packing: Pack the sequences where the model gives the same results.
    """
    parts = [policy.first, policy.second] if isinstance(policy, LogitMix) else [policy]
    models = [PackedModel(model, pad, lambda *_: None) for model in (*parts, sft)]
    longest = max((len(prompt) + len(answer) for prompt, answer in sequences), default=0)
    longest_answer = max((len(answer) for _, answer in sequences), default=0)
    batch_size = max(1, min(batch_size, _PASS_TOKENS // max(1, longest_answer)))
    results = [0.0] * len(sequences)
    for k, batch in enumerate(answer_batches(sequences, batch_size)):
        texts = [(sequences[i][0] + sequences[i][1], len(sequences[i][0])) for i in batch]
        if k == 0:
            packing = packing and packs(models[-1], texts, longest)
        all_logits, all_lengths = zip(*(model.answer_logits(texts, packing=packing) for model in models), strict=True)
        values = []
        for *own, theirs in zip(*(torch.split(logits, HEAD_TOKENS) for logits in all_logits), strict=True):
            combined = mixed(own[0], own[1], policy.q) if isinstance(policy, LogitMix) else own[0]
            p, q = combined.float().log_softmax(-1), theirs.float().log_softmax(-1)
            values.append((p.exp() * (p - q)).sum(-1))
        for i, value in zip(batch, sums_by_answer(torch.cat(values), all_lengths[0], len(batch)), strict=True):
            results[i] = value
    for model in models:
        model.answers.handle.remove()
    return results
