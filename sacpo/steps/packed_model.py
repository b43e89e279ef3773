"""Calls a model with packed rows, in the place of the padded batch that a caller has.

`PackedModel` stands in for the model in TRL's loss functions: it takes their padded batch and returns log-probabilities
in the padded batch's shape, so losses and metrics are TRL's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from sacpo.compat.transformers import attention_of
from sacpo.steps.packing import IGNORED, Rows, answer_groups, boolean_mask, pack, pair_groups, sees

MASKS_BY_LAYER = frozenset({"qwen2", "qwen3", "gemma2", "gemma3_text"})
"""Model types that take a dictionary of masks by layer type."""

KNOWN = MASKS_BY_LAYER | {"llama", "mistral", "phi3", "gpt_neox", "gpt2", "opt"}
"""Model types whose packed results equal the padded ones; `tests/test_packing.py` compares each of them."""

_FULL, _SLIDING = "full_attention", "sliding_attention"
_LONG_ROPE = frozenset({"dynamic", "longrope"})  # kinds whose angles depend on the longest text of a batch
HEAD_TOKENS = 1024
"""Tokens whose logits are held in float32 at once."""
_ATTENTION_SCALE = 6  # x hidden size: the row length at which a dense mask's attention costs as much as the rest


def obstacle(model: Any, max_length: int) -> str | None:
    """Why a model cannot be packed at all; None if it can, or may.

    Args:
        model: A model of transformers, without wrappers.
        max_length: Tokens of the longest sequence.
    """
    config = model.config.get_text_config()
    attention = attention_of(model)
    if attention not in ("sdpa", "eager", "flex_attention"):
        return f"attention {attention} takes no mask of its own kind; sdpa, eager and flex_attention do"
    if attention == "flex_attention" and model.device.type == "cpu":
        return "flex_attention has no gradients on CPUs; sdpa has"
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        return f"{config.model_type} balances the load of its experts over the tokens of a batch"
    rope = getattr(config, "rope_parameters", None) or {}
    limit = rope.get("original_max_position_embeddings")
    if rope.get("rope_type") in _LONG_ROPE and (limit is None or max_length > limit):
        return f"its {rope['rope_type']} positions depend on the longest text of a batch"
    return None


def is_known(model: Any) -> bool:
    """Whether a model's type is known to give the same results packed and padded."""
    return model.config.get_text_config().model_type in KNOWN


def model_inputs(model: Any, rows: Rows) -> dict[str, Any]:
    """Arguments of a model's forward function for packed rows.

    Args:
        model: A model of transformers, without wrappers.
        rows: The rows, on the model's device.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    by_layer = config.model_type in MASKS_BY_LAYER or (not is_known(model) and layer_types is not None)
    mask: Any
    if by_layer:
        kinds = set(layer_types or [_FULL])
        if kinds - {_FULL, _SLIDING}:
            raise ValueError(f"layers of the kinds {', '.join(sorted(kinds - {_FULL, _SLIDING}))} take no such mask")
        mask = {kind: _mask(model, rows, window if kind == _SLIDING else None) for kind in sorted(kinds)}
    else:
        mask = _mask(model, rows, window)
    return {"input_ids": rows.ids, "position_ids": rows.positions, "attention_mask": mask, "use_cache": False}


def _mask(model: Any, rows: Rows, window: int | None) -> Any:
    """A mask as the model's attention takes it: a block mask, boolean, or added to the scores."""
    attention = attention_of(model)
    count, width = rows.ids.shape
    if attention == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(sees(rows, window), count, None, width, width, device=str(rows.ids.device))
    visible = boolean_mask(rows, window)
    if attention == "sdpa":
        return visible
    lowest = torch.finfo(model.dtype).min
    return torch.zeros(visible.shape, dtype=model.dtype, device=visible.device).masked_fill(~visible, lowest)


def equal_nats(dtype: torch.dtype) -> float:
    """Largest difference of a token's log-probability between packed and padded rows that counts as rounding."""
    return 1e-3 if dtype == torch.float32 else 0.1


def sums_by_answer(values: torch.Tensor, lengths: dict[int, int], count: int) -> list[float]:
    """The sum of each answer's values; 0 for an answer without tokens.

    Args:
        values: One per answer token, in the order of `PackedModel.answer_logits`.
        lengths: Tokens of each answer, as `PackedModel.answer_logits` returns them.
        count: Number of answers.
    """
    sums = (float(part.double().sum()) for part in torch.split(values, list(lengths.values())))
    by_number = dict(zip(lengths, sums, strict=True))
    return [by_number.get(n, 0.0) for n in range(count)]


class AnswerTokens:
    """Keeps a backbone's hidden states of chosen tokens only, so that the head computes no other logits.

    A forward hook of torch on the model below the head. While `places` is None it changes nothing.

    Args:
        backbone: The module below the language modelling head (`get_decoder()` of transformers' models).
    """

    def __init__(self, backbone: torch.nn.Module) -> None:
        self.places: torch.Tensor | None = None
        self.handle = backbone.register_forward_hook(self._keep)

    def _keep(self, _: torch.nn.Module, __: Any, output: Any) -> Any:
        if self.places is not None:
            output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[self.places][None]
        return output


class PackedModel:
    """Takes the padded batches of TRL's losses and calls a model with packed rows.

    Args:
        model: The model without wrappers for parallel training or adapters; its configuration decides the masks.
        pad: Id of the padding token.
        count: Receives the numbers of real and of all computed tokens of each forward pass.
    """

    def __init__(self, model: Any, pad: int, count: Callable[[int, int], None]) -> None:
        self.model, self.pad, self.count = model, pad, count
        self.scale = _ATTENTION_SCALE * model.config.get_text_config().hidden_size
        if attention_of(model) == "flex_attention":
            self.scale = 2**40  # a block mask skips what is not seen, so one row without padding costs least
        self.answers = AnswerTokens(model.get_decoder())

    def log_probabilities(self, wrapped: Any, input_ids: Any, attention_mask: Any, labels: Any, **options: Any) -> Any:
        """Per-token values of the labelled tokens, as TRL's fused head returns them for the padded batch.

        Args:
            wrapped: The model as it is trained, with its wrappers and TRL's fused head.
            input_ids: Padded on the right; shape (sequences, tokens).
            attention_mask: 0 for padding.
            labels: Token ids, -100 where nothing is learned.
            options: Further arguments of the model.
        """
        device, (count, width) = input_ids.device, input_ids.shape
        lengths = attention_mask.sum(1).tolist()
        ids, targets = input_ids.tolist(), labels.tolist()
        sequences = []
        for row, length, target in zip(ids, lengths, targets, strict=True):
            learned = [t for t in range(1, length) if target[t] != IGNORED]
            sequences.append((row, learned[0], learned[-1] + 1) if learned else (row, 1, 1))
        rows = self._pack(answer_groups(sequences, self.scale), device)
        places: list[int] = []
        slots: list[int] = []
        for sequence, place in rows.places.items():
            start = rows.starts[sequence]
            places += place
            slots += range(sequence * (width - 1) + start, sequence * (width - 1) + start + len(place))
        slot = torch.tensor(slots or [0], device=device)
        options |= model_inputs(self.model, rows)
        self.answers.places = torch.tensor(places or [0], device=device)
        try:
            compact = wrapped(shift_labels=labels[:, 1:].flatten()[slot][None], **options)
        finally:
            self.answers.places = None

        def spread(values: Any) -> Any:
            return values.new_zeros(count * (width - 1)).index_put((slot,), values[0]).view(count, width - 1)

        fields = {
            field.name: spread(value)
            for field in dataclasses.fields(compact)
            if (value := getattr(compact, field.name)) is not None and value.dim() == 2
        }
        return type(compact)(**fields)

    def answer_sums(self, texts: Sequence[tuple[list[int], int]], *, packing: bool) -> list[float]:
        """Log-probability of each answer, the sum over its tokens in nats, from the model's own head.

        Args:
            texts: (token ids, place of the first answer token).
            packing: Share prompts and fill rows; otherwise each text is a row, padded to the longest.
        """
        logits, lengths = self.answer_logits(texts, packing=packing)
        tokens = [token for n, length in lengths.items() for token in texts[n][0][-length:]]
        targets = torch.tensor(tokens, dtype=torch.long, device=self.model.device)
        values = [
            part.float().gather(-1, target[:, None]).squeeze(-1) - part.float().logsumexp(-1)
            for part, target in zip(torch.split(logits, HEAD_TOKENS), torch.split(targets, HEAD_TOKENS), strict=True)
        ]
        return sums_by_answer(torch.cat(values), lengths, len(texts))

    def answer_logits(
        self, texts: Sequence[tuple[list[int], int]], *, packing: bool
    ) -> tuple[torch.Tensor, dict[int, int]]:
        """Logits of all answer tokens, one answer after the other, in the model's number format.

        Args:
            texts: (token ids, place of the first answer token).
            packing: Share prompts and fill rows; otherwise each text is a row, padded to the longest.

        Returns:
            Logits of shape (answer tokens, vocabulary); number of each text that has an answer and the tokens of the
            answer, in the order of the logits.
        """
        groups = answer_groups([(ids, start, len(ids)) for ids, start in texts], self.scale)
        device = self.model.device
        if packing:
            rows = self._pack(groups, device)
            inputs = model_inputs(self.model, rows)
            places = rows.places
        else:
            width = max(len(ids) for ids, _ in texts)
            lengths = torch.tensor([len(ids) for ids, _ in texts])
            padded = torch.tensor([ids + [self.pad] * (width - len(ids)) for ids, _ in texts], device=device)
            mask = (torch.arange(width) < lengths[:, None]).long().to(device)
            self.count(int(lengths.sum()), padded.numel())
            inputs = {"input_ids": padded, "attention_mask": mask, "use_cache": False}
            places = {
                branch.sequence: range(first := branch.sequence * width + branch.start, first + len(branch.ids))
                for group in groups
                for branch in group.branches
            }
        chosen = [place for n in places for place in places[n]]
        self.answers.places = torch.tensor(chosen, dtype=torch.long, device=device)
        try:
            logits = self.model(**inputs).logits[0]
        finally:
            self.answers.places = None
        return logits, {n: len(own) for n, own in places.items()}

    def scores(self, wrapped: Any, input_ids: Any, attention_mask: Any, **options: Any) -> Any:
        """A reward model's scores of a padded batch whose second half has the rejected answers of the first half.

        Returns:
            An object with `logits` of shape (sequences, 1).
        """
        lengths, ids = attention_mask.sum(1).tolist(), input_ids.tolist()
        whole = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        rows = self._pack(pair_groups(whole[: len(whole) // 2], whole[len(whole) // 2 :]), input_ids.device)
        outputs: list[torch.Tensor] = []
        # Only now, so that it gets what DeepSpeed's own hooks return: gradients of their result gather the head's
        # sharded weights, those of the head's bare output do not.
        hook = self.model.score.register_forward_hook(lambda *call: outputs.append(call[-1]))
        try:
            wrapped(**options | model_inputs(self.model, rows))
        finally:
            hook.remove()
        ends = [rows.places[sequence][-1] for sequence in range(len(whole))]
        return SimpleNamespace(logits=outputs[-1].flatten(0, 1)[torch.tensor(ends, device=input_ids.device)])

    def _pack(self, groups: Any, device: torch.device) -> Rows:
        rows = pack(groups, self.scale, self.pad)
        self.count(rows.tokens, rows.ids.numel())
        names = ("ids", "positions", "groups", "branches")
        return dataclasses.replace(rows, **{name: getattr(rows, name).to(device) for name in names})
