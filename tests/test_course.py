"""A training that did nothing, or that made the chosen responses less likely, is noticed."""

from __future__ import annotations

from typing import Any

import pytest

from sacpo.planning.payloads import AnyTrainPayload, DPOPayload, SFTPayload
from sacpo.spaces.training import DPOTraining, SFTTraining
from sacpo.steps.course import Course

COMMON: dict[str, Any] = {"seed": 0, "dtype": "float32", "max_length": 16}
DPO = DPOPayload(method="dpo", objective="o", settings=DPOTraining(learning_rate=1e-3), kl_parameter=0.5, **COMMON)
SFT: AnyTrainPayload = SFTPayload(method="sft", settings=SFTTraining(learning_rate=1e-3), **COMMON)


def history(losses: list[float], chosen: float = 0.2, margin: float = 0.5) -> list[dict[str, Any]]:
    return [
        {"loss": loss, "rewards/chosen": chosen, "rewards/margins": margin, "rewards/accuracies": 0.75}
        for loss in losses
    ]


def test_rewards_become_nats_against_the_reference() -> None:
    course = Course.of(history([0.69, 0.5]), DPO)
    assert (course.first_loss, course.final_loss) == (0.69, 0.5)
    assert (course.margin, course.chosen_logp_change, course.reward_accuracy) == (1.0, 0.4, 0.75)
    assert course.warnings == ()


@pytest.mark.parametrize(("updates", "counted"), [(1, 1), (3, 2), (8, 4), (30, 10), (100, 10), (1000, 50)])
def test_final_values_are_not_those_of_one_batch(updates: int, counted: int) -> None:
    losses = [float(i) for i in range(updates)]
    assert Course.of(history(losses), DPO).final_loss == sum(losses[-counted:]) / counted


def test_a_loss_that_does_not_move_is_a_warning() -> None:
    (warning,) = Course.of(history([0.69315, 0.69314, 0.69315]), DPO).warnings
    assert "the loss did not move" in warning
    assert "learning_rate" in warning


def test_chosen_responses_that_become_less_likely_are_a_warning() -> None:
    (warning,) = Course.of(history([0.69, 0.4], chosen=-2.0), DPO).warnings
    assert "by 4 nats" in warning


def test_methods_without_a_reference_have_no_rewards() -> None:
    course = Course.of([{"loss": 3.0}, {"loss": 2.0}], SFT)
    assert (course.margin, course.chosen_logp_change, course.reward_accuracy) == (None, None, None)
    assert course.warnings == ()
