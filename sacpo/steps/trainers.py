"""TRL's trainers as a stage uses them.

They count what they train on, and take the reference's log-probabilities from the bank (`sacpo.steps.reference`) where
TRL would keep a second model.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset
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

from sacpo.errors import StepError
from sacpo.steps.throughput import Counters


class _Counted:
    """TRL's trainer, taking its examples in the given order and counting what it trains on."""

    counters: Counters
    order: list[int]

    def _get_train_sampler(self, *_: Any) -> list[int]:
        return self.order

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        self.counters.count(inputs, self.state.global_step)  # type: ignore[attr-defined]
        return super().training_step(model, inputs, *rest, **named)  # type: ignore[misc]


class _Banked(_Counted):
    """The same over examples that the `data` step has tokenised, with the reference's log-probabilities beside them."""

    banked: tuple[str, str]
    reference_difference: float | None = None

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        fresh = self.state.global_step == 0 and self.reference_difference is None  # type: ignore[attr-defined]
        if self.precompute_ref_logps and fresh:  # type: ignore[attr-defined]
            self._compare(model, inputs)
        return super()._compute_loss(model, inputs, return_outputs)  # type: ignore[misc]

    def _compare(self, model: Any, inputs: dict[str, Any]) -> None:
        """Hold the bank against the policy itself, which is the reference until the first update.

        Raises:
            StepError: they are further apart than rounding explains.
        """
        live = self.compute_ref_log_probs(model, inputs)  # type: ignore[attr-defined]
        pairs = [(inputs[name], now) for name, now in zip(self.banked, live, strict=True) if now is not None]
        self.reference_difference = max(float((bank - now).abs().max()) for bank, now in pairs)
        if self.reference_difference > 1.0 + 0.02 * max(float(now.abs().max()) for _, now in pairs):
            raise StepError(
                f"the reference's stored log-probabilities are up to {self.reference_difference:.3g} nats off the "
                "ones of the policy that training starts from: they belong to another policy or other data"
            )


class _SFT(_Counted, SFTTrainer):  # type: ignore[misc]
    pass


class _DPO(_Banked, DPOTrainer):  # type: ignore[misc]
    banked = ("ref_chosen_logps", "ref_rejected_logps")


class _KTO(_Banked, KTOTrainer):  # type: ignore[misc]
    banked = ("ref_logps", "ref_KL_logps")


class _Reward(_Counted, RewardTrainer):  # type: ignore[misc]
    pass


TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (_SFT, SFTConfig),
    "dpo": (_DPO, DPOConfig),
    "kto": (_KTO, KTOConfig),
    "reward": (_Reward, RewardConfig),
}
