"""TRL's trainers as a training step uses them.

They count what they train on, take examples in a given order, and take the reference policy's log-probabilities from
the data set (`sacpo.steps.reference`) where TRL would keep a second model. The private hooks of TRL that this needs are
in `sacpo.compat.trl`.
"""

from __future__ import annotations

from typing import Any

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
from sacpo.steps.throughput import ThroughputCounter


class _Counting(OrderedExamples):
    """A trainer that counts what it trains on.

    Attributes:
        counter: Receives every forward batch.
    """

    counter: ThroughputCounter

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        self.counter.count(inputs, self.state.global_step)  # type: ignore[attr-defined]
        return super().training_step(model, inputs, *rest, **named)  # type: ignore[misc]


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
        return super().compute_loss(model, inputs, *rest, **named)  # type: ignore[misc]

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
    pass


TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (_SFT, SFTConfig),
    "dpo": (_DPO, DPOConfig),
    "kto": (_KTO, KTOConfig),
    "reward": (_Reward, RewardConfig),
}
"""Trainer class and configuration class of each training method (`sacpo.spaces.methods`)."""
