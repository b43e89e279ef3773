"""TRL's trainers as a training step uses them.

They count what they train on, take examples in a given order, pack them into rows (`sacpo.steps.packing`), and take
the reference policy's log-probabilities from the data set (`sacpo.steps.reference`) where TRL would keep a second
model. The private hooks of TRL that this needs are in `sacpo.compat.trl`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from sacpo.compat.trl import OrderedExamples, PreparedExamples
from sacpo.errors import StepError
from sacpo.steps.model_loading import computing_dtype
from sacpo.steps.packed_model import PackedModel, equal_nats, is_known, obstacle
from sacpo.steps.packing import IGNORED
from sacpo.steps.throughput import ThroughputCounter

_LOG = logging.getLogger(__name__)


class _Counting(OrderedExamples):
    """A trainer that counts what it trains on, and calls its model with packed rows where `pack` was called.

    Attributes:
        counter: Receives every forward batch.
        padded_because: Why the sequences are padded instead of packed; None if they are packed.
    """

    counter: ThroughputCounter
    padded_because: str | None = "resources.packing is false"
    _packed: PackedModel | None = None
    _compared = False

    def pack(self) -> None:
        """Pack the sequences of every forward pass if the model can be packed; note the reason if it cannot."""
        model = self.model  # type: ignore[attr-defined]
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        self.padded_because = obstacle(base, self.args.max_length)  # type: ignore[attr-defined]
        if self.padded_because is not None:
            _LOG.warning("sequences are padded, not packed: %s", self.padded_because)
            return
        self._packed = PackedModel(base, base.config.get_text_config().pad_token_id or 0, self.counter.count_packed)
        self._compared = is_known(base)

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        self.counter.count(inputs, self.state.global_step)  # type: ignore[attr-defined]
        return super().training_step(model, inputs, *rest, **named)  # type: ignore[misc]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        if self._packed is not None and not self._compared:
            self._compare_packed(model, inputs)
        if self._packed is None:
            self.counter.count_padded(inputs)
        else:
            model = self._packed_call(model)
        return super().compute_loss(model, inputs, *rest, **named)  # type: ignore[misc]

    def _packed_call(self, model: Any) -> Callable[..., Any]:
        """A function that stands in for the model in TRL's loss."""
        packed = self._packed
        assert packed is not None
        return lambda **inputs: packed.log_probabilities(model, **inputs)

    def _padded_values(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """What packing must not change, of a model or of the function that stands in for it."""
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        labels = inputs["labels"] if "labels" in inputs else ids.masked_fill(inputs["completion_mask"] == 0, IGNORED)
        values: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).log_probs
        return values

    def _compare_packed(self, model: Any, inputs: dict[str, Any]) -> None:
        """Compare packed with padded values of the first batch, on all workers; pad if they differ or packing fails."""
        self._compared = True
        training = model.training
        model.eval()
        with torch.no_grad():
            padded = self._padded_values(model, inputs)
            try:
                packed = self._padded_values(self._packed_call(model), inputs)
                difference = (packed - padded).abs().max().float()
            except Exception as error:  # a model may refuse a mask with any error
                self.padded_because = f"it cannot be called with packed rows ({type(error).__name__})"
                difference = torch.tensor(float("inf"), device=padded.device)
        model.train(training)
        largest = float(self.accelerator.gather(difference.reshape(1)).max())  # type: ignore[attr-defined]
        self.counter.forget_packed()
        if largest > equal_nats(computing_dtype(self)):
            model_type = self.model.config.model_type  # type: ignore[attr-defined]
            reason = self.padded_because or f"its results differ by up to {largest:.2g} nats a token"
            self.padded_because, self._packed = f"{model_type}: {reason}", None
            _LOG.warning("sequences are padded, not packed: %s", self.padded_because)


class _WithReference(PreparedExamples, _Counting):
    """A trainer over examples that have the reference policy's log-probabilities beside them.

    Attributes:
        reference_columns: Names of the columns, in the order in which TRL's `compute_ref_log_probs` returns them.
        reference_difference: Largest difference in nats between these columns and the policy's own log-probabilities
            before the first update; None until they were compared.
    """

    reference_columns: tuple[str, str]
    reference_difference: float | None = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        untrained = self.state.global_step == 0  # type: ignore[attr-defined]
        if self.precompute_ref_logps and untrained and self.reference_difference is None:  # type: ignore[attr-defined]
            self._compare(model, inputs)
        return super().compute_loss(model, inputs, *rest, **named)

    def _compare(self, model: Any, inputs: dict[str, Any]) -> None:
        """Compare the precomputed log-probabilities with the policy's, which is the reference before the first update.

        Raises:
            StepError: they differ by more than rounding explains.
        """
        live = self.compute_ref_log_probs(model, inputs)  # type: ignore[attr-defined]
        columns = [
            (inputs[name], values)
            for name, values in zip(self.reference_columns, live, strict=True)
            if values is not None
        ]
        self.reference_difference = max(float((stored - values).abs().max()) for stored, values in columns)
        largest = max(float(values.abs().max()) for _, values in columns)
        if self.reference_difference > 1.0 + 0.02 * largest:
            raise StepError(
                f"the reference's stored log-probabilities differ by up to {self.reference_difference:.3g} nats from "
                "those of the policy that training starts from: they belong to another policy or other data"
            )


class _SFT(_Counting, SFTTrainer):  # type: ignore[misc]
    pass


class _DPO(_WithReference, DPOTrainer):  # type: ignore[misc]
    reference_columns = ("ref_chosen_logps", "ref_rejected_logps")


class _KTO(_WithReference, KTOTrainer):  # type: ignore[misc]
    reference_columns = ("ref_logps", "ref_KL_logps")


class _Reward(_Counting, RewardTrainer):  # type: ignore[misc]
    def _packed_call(self, model: Any) -> Callable[..., Any]:
        packed = self._packed
        assert packed is not None
        return lambda **inputs: packed.scores(model, **inputs)

    def _padded_values(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        values: torch.Tensor = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        return values


TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (_SFT, SFTConfig),
    "dpo": (_DPO, DPOConfig),
    "kto": (_KTO, KTOConfig),
    "reward": (_Reward, RewardConfig),
}
"""Trainer class and configuration class of each training method (`sacpo.spaces.methods`)."""
