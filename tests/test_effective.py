"""Every setting is compared with the object that was built from it, or listed with the reason why it cannot be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sacpo.errors import StepError
from sacpo.planning.payloads import DPOPayload
from sacpo.spaces.evaluation import Generation
from sacpo.spaces.methods import METHODS
from sacpo.spaces.training import DPOTraining
from sacpo.steps import effective
from sacpo.steps.batch import Batch


@pytest.mark.parametrize("method", METHODS)
def test_every_training_setting_is_compared_or_listed(method: str) -> None:
    fields = set(METHODS[method].settings.model_fields)
    assert fields <= effective.COMPARED.keys() | effective.NOT_COMPARED.keys()


def test_every_generation_setting_is_compared_or_listed() -> None:
    fields = set(Generation.model_fields)
    assert fields == effective.COMPARED_GENERATION.keys() | effective.NOT_COMPARED_GENERATION.keys()


def test_no_setting_is_both_compared_and_listed_and_each_reason_is_given() -> None:
    assert not effective.COMPARED.keys() & effective.NOT_COMPARED.keys()
    assert not effective.COMPARED_GENERATION.keys() & effective.NOT_COMPARED_GENERATION.keys()
    assert all([*effective.NOT_COMPARED.values(), *effective.NOT_COMPARED_GENERATION.values()])


def built(**changes: Any) -> effective.BuiltStage:
    """A DPO stage whose trainer took all settings, but for the changes."""
    args: dict[str, Any] = {
        "learning_rate": 1e-3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "world_size": 2,
        "lr_scheduler_type": SimpleNamespace(value="cosine"), "warmup_steps": 3, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "adam_epsilon": 1e-8, "gradient_checkpointing": False, "label_smoothing": 0.1,
        "seed": 0, "max_length": 16, "bf16": False,
    }  # fmt: skip
    trainer = SimpleNamespace(
        args=SimpleNamespace(**args | changes),
        beta=changes.get("beta", 0.5),
        loss_types=changes.get("loss_types", ["sigmoid"]),
        model=SimpleNamespace(dtype=changes.get("dtype", "torch.float32")),
        accelerator=SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=changes.get("plugin"))),
    )
    return effective.BuiltStage(trainer, updates=30, examples=320, order=[0] * 960)


PAYLOAD = DPOPayload(
    method="dpo",
    objective="helpfulness",
    settings=DPOTraining(learning_rate=1e-3, epochs=3, batch_size=32, warmup_ratio=0.1, label_smoothing=0.1),
    kl_parameter=0.5,
    seed=0,
    dtype="float32",
    max_length=16,
)


def compare(stage: effective.BuiltStage) -> dict[str, Any]:
    return effective.effective_training(stage, PAYLOAD, Batch.of(PAYLOAD, RESOURCES, 2), zero_stage=0).settings


RESOURCES: Any = SimpleNamespace(per_device_batch=8)


def test_settings_that_took_effect_are_recorded() -> None:
    settings = compare(built())
    assert (settings["warmup_ratio"], settings["label_smoothing"], settings["max_length"]) == (0.1, 0.1, 16)
    assert (settings["kl_parameter"], settings["epochs"], settings["batch_size"]) == (0.5, 3, 32)


@pytest.mark.parametrize(
    "change",
    [
        {"warmup_steps": 0},
        {"label_smoothing": 0.0},
        {"max_length": 1024},
        {"learning_rate": 5e-5},
        {"gradient_accumulation_steps": 1},
        {"lr_scheduler_type": SimpleNamespace(value="linear")},
        {"weight_decay": 0.1},
        {"max_grad_norm": 0.0},
        {"adam_epsilon": 1e-6},
        {"gradient_checkpointing": True},
        {"seed": 42},
        {"beta": 0.1},
        {"loss_types": ["hinge"]},
        {"loss_types": ["sigmoid", "bco_pair"]},
        {"dtype": "torch.bfloat16"},
        {"bf16": True},
        {"plugin": SimpleNamespace(zero_stage=2)},
    ],
)
def test_a_setting_without_effect_fails_the_step(change: dict[str, Any]) -> None:
    with pytest.raises(StepError, match="settings without effect"):
        compare(built(**change))


@pytest.mark.parametrize(
    ("config", "answers"),
    [
        ({"max_new_tokens": 99}, [[1], [2]]),
        ({"temperature": 0.7}, [[1], [2]]),
        ({"top_p": 0.5}, [[1], [2]]),
        ({"do_sample": False}, [[1], [2]]),
        ({}, [[1]]),
        ({}, [[1] * 9, [2]]),
    ],
)
def test_a_generation_setting_without_effect_fails_the_step(config: dict[str, Any], answers: list[list[int]]) -> None:
    settings = Generation(max_new_tokens=8, temperature=1.0, top_p=0.9, samples=2)
    values: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9, "do_sample": True} | config
    used: Any = SimpleNamespace(**values)
    with pytest.raises(StepError):
        effective.effective_generation(settings, used, answers, prompts=1)
