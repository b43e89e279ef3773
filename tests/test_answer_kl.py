"""The KL divergence on answers that are computed together equals that of one answer at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sacpo.steps import answer_kl as module
from sacpo.steps.answer_kl import answer_kl
from sacpo.steps.logit_mix import LogitMix
from sacpo.steps.packed_model import KNOWN, PackedModel
from tests.test_packing import PAD, sequences, tiny

PAIRS = [(prompt or [1], answer) for prompt, answer in sequences()]


@torch.no_grad()
def one_by_one(policy: Any, sft: Any) -> list[float]:
    result = []
    for prompt, answer in PAIRS:
        ids, window = torch.tensor([prompt + answer]), slice(len(prompt) - 1, -1)
        p, q = (model(input_ids=ids).logits[0, window].double().log_softmax(-1) for model in (policy, sft))
        result.append(float((p.exp() * (p - q)).sum()))
    return result


def other(model: Any) -> Any:
    """The model after a change of all its weights."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("model_type", [*sorted(KNOWN), "olmo2", "bloom"])  # bloom is refused by the comparison
def test_the_kl_of_a_batch_is_that_of_each_answer(model_type: str) -> None:
    changes = {"n_layer": 2, "n_head": 4} if model_type == "bloom" else {}
    sft, policy = tiny(model_type, **changes).eval(), other(tiny(model_type, **changes)).eval()
    expected = one_by_one(policy, sft)
    assert min(expected) > 0.01
    for packing in (True, False):
        values = answer_kl(policy, sft, PAIRS, 5, PAD, packing=packing)
        assert values == pytest.approx(expected, rel=1e-5)
    assert answer_kl(sft, sft, PAIRS, 5, PAD) == [0.0] * len(PAIRS)


def test_a_mixture_an_empty_answer_and_passes_of_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    sft, policy = tiny("llama").eval(), other(tiny("llama")).eval()
    mix = LogitMix(sft, policy, 0.3)
    assert answer_kl(mix, sft, PAIRS, 16, PAD) == pytest.approx(one_by_one(mix, sft), rel=1e-5)
    assert answer_kl(policy, sft, [([5, 6], [])], 16, PAD) == [0.0]
    assert answer_kl(policy, sft, [], 16, PAD) == []
    passes: list[int] = []
    usual = PackedModel.answer_logits
    monkeypatch.setattr(
        PackedModel, "answer_logits", lambda m, texts, **o: passes.append(len(texts)) or usual(m, texts, **o)
    )
    monkeypatch.setattr(module, "_PASS_TOKENS", 26)  # the longest answer has 12 tokens
    assert answer_kl(policy, sft, PAIRS, 16, PAD) == pytest.approx(one_by_one(policy, sft), rel=1e-5)
    assert set(passes) == {2}
