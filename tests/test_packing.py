"""Packed rows give the losses, gradients and scores of padded batches, for every architecture that is known to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from trl.trainer.utils import add_fused_lm_head

from sacpo.steps import packing
from sacpo.steps.packed_model import KNOWN, PackedModel, obstacle
from sacpo.steps.throughput import ThroughputCounter
from sacpo.steps.trainers import _Counting

VOCABULARY, PAD = 64, 0
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": PAD,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 6},
    "phi3": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1, "head_dim": 8},
    "gemma2": {"sliding_window": 6, "head_dim": 8},
    "gemma3_text": {"sliding_window": 6, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
             "resid_pdrop": 0.0},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
}  # fmt: skip


def tiny(model_type: str, auto: Any = AutoModelForCausalLM, **changes: Any) -> Any:
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(model_type, **_SIZES | _OWN.get(model_type, {}) | changes))


def padded(sequences: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """(prompt, answer) pairs as TRL's collators pad them."""
    width = max(len(prompt) + len(answer) for prompt, answer in sequences)
    ids = [[*prompt, *answer] for prompt, answer in sequences]
    labels = [[packing.IGNORED] * len(prompt) + answer for prompt, answer in sequences]
    return {
        "input_ids": torch.tensor([row + [PAD] * (width - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        "labels": torch.tensor([row + [packing.IGNORED] * (width - len(row)) for row in labels]),
    }


def sequences() -> list[tuple[list[int], list[int]]]:
    """Pairs, a prompt of one token, an empty prompt, and an answer that begins like its rival."""
    random = torch.Generator().manual_seed(1)
    draw = lambda n: torch.randint(3, VOCABULARY, (n,), generator=random).tolist()  # noqa: E731
    prompts = [draw(n) for n in (9, 14, 3, 1, 0, 20)]
    chosen = [draw(n) for n in (5, 12, 8, 3, 4, 1)]
    rejected = [draw(n) for n in (11, 2, 7, 6, 5, 9)]
    rejected[0][:2] = chosen[0][:2]
    return [*zip(prompts, chosen, strict=True), *zip(prompts, rejected, strict=True)]


def loss_and_gradients(model: Any, log_probs: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
    """A loss that is not linear in the sums, as DPO's is."""
    chosen, rejected = log_probs.sum(1).chunk(2)
    loss = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()
    model.zero_grad()
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("model_type", sorted(KNOWN))
def test_packed_losses_and_gradients_equal_the_padded_ones(model_type: str) -> None:
    model = tiny(model_type)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    batch = padded(sequences())
    computed: list[tuple[int, int]] = []
    packed_model = PackedModel(model, PAD, lambda tokens, slots: computed.append((tokens, slots)))
    usual = model(**batch, fused_lm_head=True)
    packed = packed_model.log_probabilities(model, **batch, fused_lm_head=True)
    for name in ("log_probs", "entropy", "mean_logits", "is_top1"):
        values, expected = getattr(packed, name), getattr(usual, name)
        learned = batch["labels"][:, 1:] != packing.IGNORED
        torch.testing.assert_close(values[learned], expected[learned], rtol=1e-5, atol=2e-6)
    assert torch.equal(packed.label_mask, usual.label_mask)
    loss, gradients = loss_and_gradients(model, usual.log_probs)
    packed_loss, packed_gradients = loss_and_gradients(model, packed.log_probs)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    difference = sum(float((a - b).square().sum()) for a, b in zip(packed_gradients, gradients, strict=True))
    assert difference**0.5 <= 1e-5 * sum(float(b.square().sum()) for b in gradients) ** 0.5
    ((tokens, slots),) = computed
    assert tokens < int(batch["attention_mask"].sum())  # the prompt once, the last answer token not at all
    assert slots < batch["input_ids"].numel()


@pytest.mark.parametrize("model_type", sorted(KNOWN))
def test_packed_scores_of_a_reward_model_equal_the_padded_ones(model_type: str) -> None:
    model = tiny(model_type, AutoModelForSequenceClassification, num_labels=1)
    batch = padded(sequences())
    del batch["labels"]
    expected = model(**batch).logits
    scores = PackedModel(model, PAD, lambda *_: None).scores(model, **batch).logits
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


class _Loss:
    """TRL's part of a trainer: a loss over the padded batch."""

    def compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss: torch.Tensor = -model(**inputs, fused_lm_head=True).log_probs.sum()
        return loss


class _Trainer(_Counting, _Loss):
    def __init__(self, model: Any) -> None:
        self.model = model
        self.args = SimpleNamespace(max_length=64, bf16=False)
        self.accelerator = SimpleNamespace(gather=lambda value: value)
        self.counter = ThroughputCounter()


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("mamba", {"state_size": 4}, "mamba: "),  # its state goes on from one group to the next
        ("bloom", {"n_layer": 2, "n_head": 4}, "bloom: "),  # its bias is by places in the row
        ("olmo2", {}, None),
        ("mixtral", {"num_local_experts": 2}, "mixtral balances the load of its experts"),
    ],
)
def test_other_architectures_are_compared_before_they_are_packed(
    model_type: str, changes: dict[str, Any], reason: str | None
) -> None:
    model = tiny(model_type, **changes)
    add_fused_lm_head(model)
    trainer = _Trainer(model)
    trainer.pack()
    batch = padded(sequences())
    loss = trainer.compute_loss(model, dict(batch))
    expected = _Loss().compute_loss(model, dict(batch))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    if reason is None:
        assert trainer.padded_because is None
        assert 0 < trainer.counter.slots < batch["input_ids"].numel()
    else:
        assert trainer.padded_because is not None
        assert trainer.padded_because.startswith(reason)
        assert trainer.counter.slots == batch["input_ids"].numel()


def test_positions_that_depend_on_the_batch_and_flex_attention_on_cpus_are_not_packed() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16}
    model = tiny("llama", rope_parameters=rope)
    assert obstacle(model, 16) is None
    assert "dynamic" in str(obstacle(model, 17))
    model.set_attn_implementation("flex_attention")
    assert "no gradients on CPUs" in str(obstacle(model, 16))


def test_rows_hold_every_group_once_and_little_padding() -> None:
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(30, 400, (32,), generator=random).tolist()
    rows = packing.distribute(lengths, 3456.0)
    assert sorted(i for row in rows for i in row) == list(range(32))
    width = max(sum(lengths[i] for i in row) for row in rows)
    assert sum(lengths) > 0.95 * len(rows) * width
    assert packing.distribute(lengths, 1e12) == [sorted(range(32), key=lambda i: -lengths[i])]


def test_a_block_mask_sees_what_the_dense_mask_sees() -> None:
    from torch.nn.attention.flex_attention import create_mask

    texts = [([*prompt, *answer], len(prompt), len(prompt) + len(answer)) for prompt, answer in sequences()]
    groups = packing.answer_groups(texts, 64.0)
    rows = packing.pack(groups, 64.0, PAD)
    count, width = rows.ids.shape
    for window in (None, 4):
        flex = create_mask(packing.sees(rows, window), count, None, width, width, device="cpu")
        assert torch.equal(flex.expand(count, 1, width, width), packing.boolean_mask(rows, window))


def test_a_batch_without_answers_and_many_answers_to_one_prompt_are_packed() -> None:
    empty = packing.pack([], 64.0, PAD)
    assert empty.ids.tolist() == [[PAD]]
    assert empty.tokens == 0
    prompt = list(range(400))
    groups = packing.answer_groups([(prompt + [1] * 300, 400, 700)] * 5, 3456.0)
    assert [len(group.branches) for group in groups] == [4, 1]
    assert packing.answer_groups([([1, 2, 3], 3, 3)], 3456.0) == []


@pytest.mark.parametrize("prompt", [1, 30, 300])
def test_as_many_answers_share_a_prompt_as_make_a_branch_cheapest(prompt: int) -> None:
    scale, answer, count = 384.0, 20, 100

    def cost(branches: int) -> float:
        tokens = prompt + branches * answer
        return tokens * (1 + tokens / scale) / branches

    # The copy of the last prompt token starts a branch, so one token less is shared, and one more is in the branch.
    texts = [([1] * (prompt + 1) + [2] * answer, prompt + 1, prompt + 1 + answer)] * count
    groups = packing.answer_groups(texts, scale)
    branches = len(groups[0].branches)
    assert cost(branches) <= 1.02 * min(cost(n) for n in range(1, count))
    assert sum(len(group.branches) for group in groups) == count
    rows = packing.distribute([len(group) for group in groups], scale)
    assert max(map(len, rows)) < 8  # one long row would cost more than the padding that it saves
