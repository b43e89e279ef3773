"""What settings of other tools are called here, for the error about an unknown setting."""

from __future__ import annotations

from sacpo.spaces.document import Setting

_CHAINS = "methods and their order are `chains`, such as `chain: dpo:helpfulness>dpo:harmlessness`"
_BETA = "the KL parameters are `beta` and `beta_over_lambda` in `chains`"
_TRIED = "what varies is a list in `chains`, such as `beta: [0.1, 0.5]`; `search` chooses values itself"
_TRAINING = "training settings stand below their method: `training.dpo.{}`"
_ACCUMULATION = "it follows from `training.METHOD.batch_size` (examples per update), `per_device_batch` and `workers`"
_LORA = "adapters are `training.METHOD.lora: {{{}}}`"
_QUANTIZATION = "4-bit weights below adapters are `model.quantization: nf4`"
_COMMAND_LINE = "it belongs on the command line: {}"
_TRACKER = "trackers are `report: {to: [wandb]}` (or mlflow, tensorboard, trackio); their own variables set the rest"

# By the tools that their users come from: sweeps of W&B, Optuna, axolotl, TRL.
_HINTS = {
    "parameters": _TRIED,
    "metric": "every criterion of `evaluation` is measured; a bound on one is `constraint`",
    "method": "a method of search is `search.method`; methods of training stand in `chains`",
    "early_terminate": "`evaluation.racing: true` stops judging policies that cannot be on the front",
    "program": "there is no script; the space says all, and `sacpo sweep` runs it",
    "run_cap": "the number of trials follows from the lists in `chains`, and in a search from `search.trainings`",
    "n_trials": "the number of trainings of a search is `search.trainings`",
    "direction": "every criterion is better when it is larger",
    "objective": "every criterion of `evaluation` is an objective of a search",
    "pruner": "`evaluation.racing: true` stops judging policies that cannot be on the front",
    "base_model": "the model is `model: {kind: pretrained, path: FOLDER-OR-HUB-ID}`",
    "model_name_or_path": "the model is `model: {kind: pretrained, path: FOLDER-OR-HUB-ID}`",
    "datasets": "preferences are `data.preferences`, one source per objective",
    "rl": _CHAINS,
    "rl_beta": _BETA,
    "beta": _BETA,
    "lambda": "give `beta_over_lambda`, beta divided by lambda: 0.05 for beta 0.1 and lambda 2",
    "micro_batch_size": "it is `resources.per_device_batch`; `training.METHOD.batch_size` is the examples of an update",
    "per_device_train_batch_size": "it is `resources.per_device_batch`; `training.METHOD.batch_size` is an update's",
    "gradient_accumulation_steps": _ACCUMULATION,
    "num_epochs": _TRAINING.format("epochs"),
    "num_train_epochs": _TRAINING.format("epochs"),
    "learning_rate": _TRAINING.format("learning_rate"),
    "lr_scheduler": _TRAINING.format("lr_scheduler"),
    "lr_scheduler_type": _TRAINING.format("lr_scheduler"),
    "warmup_ratio": _TRAINING.format("warmup_ratio"),
    "warmup_steps": "the warm-up is a share of the updates: `training.METHOD.warmup_ratio`",
    "weight_decay": _TRAINING.format("weight_decay"),
    "gradient_checkpointing": _TRAINING.format("gradient_checkpointing"),
    "adapter": _LORA.format(""),
    "lora_r": _LORA.format("rank: 16"),
    "lora_alpha": _LORA.format("alpha: 32"),
    "lora_dropout": _LORA.format("dropout: 0.05"),
    "lora_target_modules": _LORA.format("targets: [q_proj, v_proj]"),
    "load_in_4bit": _QUANTIZATION,
    "sequence_len": "it is `data.max_length`",
    "sample_packing": "it is `resources.packing`, which is on by default",
    "deepspeed": "ZeRO-3 is the default of `resources.sharding`",
    "seed": "it is `seeds`, a list: every policy is trained with each",
    "gpus": "it is `resources.gpus_per_worker`, for each of `resources.workers`",
    "num_gpus": "it is `resources.gpus_per_worker`, for each of `resources.workers`",
    "output_dir": _COMMAND_LINE.format("--results FOLDER"),
    "wandb_project": _TRACKER,
    "report_to": _TRACKER,
    "project": _TRACKER,
}

RANGE_HINT = (
    "should be a number or a list of numbers, such as [0.1, 0.5]; the only range is `search.beta_over_lambda`, "
    "[smallest, largest]"
)
_RANGE_KEYS = {"values", "min", "max", "low", "high", "distribution", "log"}


def is_range(given: object) -> bool:
    """Whether a value is a range, or a list of values, in the form of W&B or Optuna."""
    return isinstance(given, dict) and not _RANGE_KEYS.isdisjoint(given)


def other_name_hint(setting: Setting) -> str:
    """What an unknown setting is called here, if another tool has it; empty if none is known to have it.

    Args:
        setting: The path of the unknown setting.
    """
    return _HINTS.get(str(setting[-1]), "")
