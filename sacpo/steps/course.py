"""The course of a training: what its log says about the loss, the margins and the likelihoods, and what looks wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sacpo.planning.payloads import AnyTrainPayload, kl_parameter

_UNMOVED = 1e-3  # a loss that changes by less, relative to its first value, has not moved
_COLLAPSED_NATS = -1.0  # the chosen responses' log-probability fell by more than this
_FINAL_UPDATES = 10  # the twentieth of a short training is one batch, whose figures are mostly noise


@dataclass(frozen=True)
class Course:
    """Figures of a training's log.

    A final value is the mean over the last twentieth of the updates, over at least ten of them, but never over more
    than the last half.

    Attributes:
        first_loss: Loss of the first update.
        final_loss: Final loss.
        reward_accuracy: Final share of examples whose chosen response has the higher implicit reward; None for methods
            without a reference policy.
        margin: Final difference in nats between the chosen and the rejected responses' log-probability ratios to the
            reference policy; None likewise.
        chosen_logp_change: Final change in nats of the chosen (desirable) responses' log-probability against the
            reference policy; None likewise.
        loss_moved: Whether the loss changed by more than a thousandth of its first value.
        warnings: Signs that the training did not do what it should.
    """

    first_loss: float
    final_loss: float
    reward_accuracy: float | None
    margin: float | None
    chosen_logp_change: float | None
    loss_moved: bool
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, history: list[dict[str, Any]], payload: AnyTrainPayload) -> Course:
        """The course of a training.

        Args:
            history: The trainer's log, one entry an update; rewards in it are KL parameter x log-probability ratio.
            payload: The training's settings.
        """
        losses = [entry["loss"] for entry in history if "loss" in entry]
        beta = kl_parameter(payload)
        final: dict[str, float | None] = {
            name: _final([entry[name] for entry in history if name in entry])
            for name in ("rewards/accuracies", "rewards/margins", "rewards/chosen")
        }
        margin, chosen = final["rewards/margins"], final["rewards/chosen"]
        if beta is not None:
            margin = None if margin is None else margin / beta
            chosen = None if chosen is None else chosen / beta
        else:
            margin = chosen = final["rewards/accuracies"] = None
        moved = len(losses) < 2 or bool(np.ptp(losses) > _UNMOVED * abs(losses[0]))
        return cls(
            losses[0],
            float(_final(losses) or 0.0),
            final["rewards/accuracies"],
            margin,
            chosen,
            moved,
            tuple(_warnings(losses, chosen, moved)),
        )


def _final(values: list[float]) -> float | None:
    """Mean of the final updates' values; None of no values."""
    number = min(max(len(values) // 20, _FINAL_UPDATES), (len(values) + 1) // 2)
    return float(np.mean(values[-number:])) if values else None


def _warnings(losses: list[float], chosen: float | None, moved: bool) -> list[str]:
    warnings = []
    if not moved:
        warnings.append(
            f"the loss did not move (it stayed within {np.ptp(losses):.2g} of {losses[0]:.4g}); try a higher "
            "learning_rate or more examples"
        )
    if chosen is not None and chosen < _COLLAPSED_NATS:
        warnings.append(
            f"the chosen responses became less likely, by {-chosen:.3g} nats on average (likelihood displacement); try "
            "a lower learning_rate, fewer epochs or a higher KL parameter"
        )
    return warnings
