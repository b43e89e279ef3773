"""Requested is effective: every setting is compared with the object that was built from it, or listed with a reason.

`tests/test_effective.py` fails for a field of the settings that is neither compared nor listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sacpo.errors import StepError
from sacpo.planning.payloads import AnyTrainPayload, kl_parameter
from sacpo.planning.records import TrainEffective
from sacpo.spaces.evaluation import Generation
from sacpo.spaces.training import KTOTraining, Training
from sacpo.steps.adapters import effective_lora
from sacpo.steps.batch import Batch
from sacpo.steps.model_loading import computing_dtype, effective_loading

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True)
class BuiltStage:
    """A stage's trainer after it was built, and what it was built for.

    Attributes:
        trainer: The TRL trainer.
        updates: Updates of the whole stage.
        examples: Examples of one epoch.
        order: Numbers of the examples of all epochs, in the order of training.
    """

    trainer: Any
    updates: int
    examples: int
    order: list[int]


def _world_batch(stage: BuiltStage) -> int:
    args = stage.trainer.args
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)


def _warmup_ratio(stage: BuiltStage, requested: float) -> float:
    """The requested ratio if the trainer's number of warm-up updates is the one that follows from it."""
    steps = stage.trainer.args.warmup_steps
    return requested if steps == math.ceil(requested * stage.updates) else steps / stage.updates


COMPARED: dict[str, Callable[[BuiltStage, Any], Any]] = {
    "learning_rate": lambda stage, _: stage.trainer.args.learning_rate,
    "epochs": lambda stage, _: len(stage.order) // stage.examples,
    "batch_size": lambda stage, _: _world_batch(stage),
    "lr_scheduler": lambda stage, _: str(stage.trainer.args.lr_scheduler_type.value),
    "warmup_ratio": _warmup_ratio,
    "weight_decay": lambda stage, _: stage.trainer.args.weight_decay,
    "max_grad_norm": lambda stage, _: stage.trainer.args.max_grad_norm,
    "adam_epsilon": lambda stage, _: stage.trainer.args.adam_epsilon,
    "gradient_checkpointing": lambda stage, _: stage.trainer.args.gradient_checkpointing,
    "label_smoothing": lambda stage, _: stage.trainer.args.label_smoothing,
    "loss": lambda stage, _: _loss(stage.trainer),
    "lora": lambda stage, requested: effective_lora(stage.trainer.model, requested),
    "kl_batch_size": lambda stage, _: stage.trainer.args.per_device_train_batch_size * stage.trainer.args.world_size,
}
"""How each training setting is read back: (stage, requested value) to the effective value."""

NOT_COMPARED: dict[str, str] = {
    "seed": "the payload's seed is compared; SFT's own setting only names it",
}
"""Training settings that have nothing to be compared with, and why."""

COMPARED_GENERATION: dict[str, Callable[[Any, list[list[int]], int, Generation], Any]] = {
    "max_new_tokens": lambda config, answers, prompts, requested: config.max_new_tokens,
    "temperature": lambda config, answers, prompts, requested: config.temperature if config.do_sample else 0.0,
    "top_p": lambda config, answers, prompts, requested: config.top_p if config.do_sample else requested.top_p,
    "samples": lambda config, answers, prompts, requested: len(answers) // prompts,
}
"""How each generation setting is read back: (configuration, answers, number of prompts, settings) to its value."""

NOT_COMPARED_GENERATION: dict[str, str] = {
    "batch_size": "the number of sequences in a forward pass; no object keeps it",
    "engine": "it selects the function that generates",
    "seed": "torch.manual_seed takes it and no object keeps it",
}
"""Generation settings that have nothing to be compared with, and why."""


def _loss(trainer: Any) -> str:
    """DPO's trainer keeps a list of loss types, KTO's a single one."""
    types = trainer.loss_types if hasattr(trainer, "loss_types") else [trainer.loss_type]
    return str(types[0]) if len(types) == 1 else str(types)


def effective_training(stage: BuiltStage, payload: AnyTrainPayload, batch: Batch, *, zero_stage: int) -> TrainEffective:
    """Compare all settings of a stage with its trainer.

    Args:
        stage: The stage after its trainer was built.
        payload: The settings.
        batch: How an update's examples are spread.
        zero_stage: ZeRO stage that the worker group was set up for; 0 without DeepSpeed.

    Raises:
        StepError: a setting did not take effect.
    """
    trainer, args = stage.trainer, stage.trainer.args
    settings = _with_numbers(payload.settings)
    requested = {name: getattr(settings, name) for name in type(settings).model_fields if name in COMPARED}
    effective = {name: COMPARED[name](stage, value) for name, value in requested.items()}
    requested |= {"seed": payload.seed, "max_length": payload.max_length, "zero_stage": zero_stage}
    plugin = trainer.accelerator.state.deepspeed_plugin
    effective |= {"seed": args.seed, "max_length": args.max_length}
    effective["zero_stage"] = plugin.zero_stage if plugin is not None else 0
    requested |= payload.loading.model_dump()
    effective |= effective_loading(trainer.model, payload.loading)
    requested["dtype"], effective["dtype"] = payload.dtype, str(computing_dtype(trainer)).removeprefix("torch.")
    if kl_parameter(payload) is not None:
        requested["kl_parameter"], effective["kl_parameter"] = kl_parameter(payload), trainer.beta
    refuse_differences(requested, effective)
    return TrainEffective(
        settings=effective,
        dtype=str(computing_dtype(trainer)),
        per_device_batch=batch.per_device,
        accumulation=batch.accumulation,
        world_size=args.world_size,
        zero_stage=effective["zero_stage"],
    )


def effective_generation(
    settings: Generation, config: GenerationConfig, answers: list[list[int]], prompts: int
) -> Generation:
    """Compare the generation settings with the configuration that the engine used and with the answers.

    Args:
        settings: The settings.
        config: The configuration that the engine used.
        answers: Token ids of all answers.
        prompts: Number of prompts.

    Raises:
        StepError: a setting did not take effect.
    """
    requested = {name: getattr(settings, name) for name in COMPARED_GENERATION}
    effective = {name: read(config, answers, prompts, settings) for name, read in COMPARED_GENERATION.items()}
    refuse_differences(requested, effective)
    if any(len(answer) > settings.max_new_tokens for answer in answers):
        raise StepError(f"an answer is longer than evaluation.generation.max_new_tokens ({settings.max_new_tokens})")
    return settings.model_copy(update=effective)


def refuse_differences(requested: dict[str, Any], effective: dict[str, Any]) -> None:
    """Raises StepError if an effective value differs from the requested one."""
    different = {name: (value, effective[name]) for name, value in requested.items() if value != effective[name]}
    if different:
        raise StepError(f"settings without effect (requested, effective): {different}")


def _with_numbers(settings: Training) -> Training:
    return settings.resolved() if isinstance(settings, KTOTraining) else settings
