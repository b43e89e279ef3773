"""The `train` step: one loop for `sft`, `dpo`, `kto` and `reward` on TRL's trainers, the same on every worker.

The parent policy is where a stage starts and, for `dpo` and `kto`, also its reference; the KL parameter is beta for a
chain's first stage and beta/lambda after it (paper, Theorem 1). Ray and DeepSpeed are not known here: `sacpo.cluster`
sets the processes up and hands the sharding configuration and the checkpoint callback in.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback

from sacpo.data.tokenise import whole_pairs
from sacpo.errors import StepError
from sacpo.execution.artifacts import CALIBRATION, EXAMPLES, HELD_OUT, HISTORY, REFERENCE
from sacpo.execution.job import Facts, Job
from sacpo.steps.batch import Batch
from sacpo.steps.throughput import Counters
from sacpo.steps.trainers import TRAINERS

_DIVERGED = 10.0  # a loss so many times its first value (at least ln 2) has diverged


@dataclass(frozen=True)
class WorkerContext:
    """Where this worker stands in its group.

    Attributes:
        world_size: Workers of the group.
        rank: This worker's number.
        deepspeed: DeepSpeed's configuration, or none for plain data parallel training.
        resume_from: Folder of a checkpoint to go on from.
        on_checkpoint: Called on every worker with its checkpoint folder and the update count.
        workdir: This worker's own folder for checkpoints.
        leaving: Asked on every worker after every update: whether a checkpoint is due, as a machine is about to go.
    """

    world_size: int
    rank: int
    deepspeed: dict[str, Any] | None
    resume_from: Path | None
    on_checkpoint: Callable[[Path, int], None]
    workdir: Path
    leaving: Callable[[], bool] = lambda: False


def run(job: Job, placement: WorkerContext, facts: Facts) -> Facts:
    """Train one stage and, on the first worker, write the policy to the job's folder.

    Raises:
        StepError: the loss is not finite or diverged, a requested setting did not take effect, or there are fewer
            examples than one batch.
    """
    payload = job.payload
    torch.set_num_threads(job.resources["cpus_per_worker"])
    tokenizer = AutoTokenizer.from_pretrained(job.parents["policy"])
    rows, order, used = _examples(job)
    batch = Batch.of(payload, job.resources, placement.world_size)
    steps = payload["settings"]["epochs"] * (used // batch.total)
    trainer_class, config_class = TRAINERS[payload["method"]]
    arguments = config_class(**_arguments(job, placement, batch, steps, rows))
    watch = DivergenceGuard(placement, facts, steps)
    trainer = trainer_class(
        model=str(job.parents["policy"]),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[watch],
    )
    trainer.counters, trainer.order = Counters(), order
    facts.ready("trainer")
    if trainer.args.world_size != placement.world_size:
        raise StepError(f"the trainer sees {trainer.args.world_size} workers, the group has {placement.world_size}")
    facts.effective = _effective(trainer, payload, batch, used, placement)
    trainer.train(resume_from_checkpoint=str(placement.resume_from) if placement.resume_from else None)
    facts.effective |= _engine(trainer, payload, placement)
    if trainer.state.global_step != steps:
        raise StepError(f"training ended after {trainer.state.global_step} of {steps} updates")
    facts.metrics |= _metrics(trainer.state.log_history, steps, used, placement)
    facts.metrics |= trainer.counters.metrics(trainer, batch.total) | {"start_seconds": facts.start_seconds()}
    if payload["kl_parameter"] is not None:
        facts.metrics["reference_max_difference"] = trainer.reference_difference
    if payload["method"] == "reward":
        facts.metrics |= _held_out(trainer, job, placement)
    trainer.save_model(str(job.folder))
    if placement.rank == 0:
        (job.folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the record holds the settings
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        (job.folder / HISTORY).write_text(json.dumps(history))
    return facts


def _examples(job: Job) -> tuple[Dataset, list[int], int]:
    """The examples, the order in which those of all epochs are taken, and how many of one epoch are used.

    Each epoch is shuffled by the step's seed; a rest that fills no whole batch is left out. An update's examples thus
    depend neither on the number of workers nor on where a stage was resumed. Within an update they are ordered by
    length, so that those of a forward pass need little padding, which changes no sum over the update. KTO's KL term is
    a mean over the forward pass: its examples stay as they fall.
    """
    payload, settings = job.payload, job.payload["settings"]
    rows = pq.read_table(job.parents["data"] / EXAMPLES).to_pylist()
    if "reference" in job.parents:
        rows = _with_reference(job, rows)
    batch = settings["batch_size"]
    used = len(rows) - len(rows) % batch
    if used == 0:
        raise StepError(
            f"training.{payload['method']}.batch_size is {batch}, but there are {len(rows)} examples; "
            "give more examples or a smaller batch"
        )
    random = np.random.default_rng([payload["seed"], 3])
    rows = [rows[i] for i in sorted(random.permutation(len(rows))[:used])]
    if payload["method"] == "reward":
        rows = whole_pairs(rows)
    order = np.concatenate([random.permutation(used) for _ in range(settings["epochs"])])
    if payload["method"] != "kto":
        order = by_length(order, [sum(len(v) for v in row.values() if isinstance(v, list)) for row in rows], batch)
    return Dataset.from_list(rows), order.tolist(), used


def by_length(order: np.ndarray, lengths: list[int], batch: int) -> np.ndarray:
    """The same examples in every batch, within it the longest first."""
    batches = order.reshape(-1, batch)
    descending = np.argsort(-np.asarray(lengths)[batches], axis=1, kind="stable")
    return np.asarray(np.take_along_axis(batches, descending, axis=1).reshape(-1))


def _with_reference(job: Job, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the bank's columns beside the examples; a live reference takes only KTO's partners from it."""
    bank = pq.read_table(job.parents["reference"] / REFERENCE).to_pylist()
    if [row["example"] for row in bank] != list(range(len(rows))):
        raise StepError(f"the reference's log-probabilities are of {len(bank)} examples, the data of {len(rows)}")
    if "partner" in bank[0]:
        rows = [
            row | {"KL_completion_ids": rows[b["partner"]]["completion_ids"]} for row, b in zip(rows, bank, strict=True)
        ]
    if job.resources["reference"] == "live":
        return rows
    names = [name for name in bank[0] if name.startswith("ref_")]
    return [row | {name: b[name] for name in names} for row, b in zip(rows, bank, strict=True)]


def _arguments(job: Job, placement: WorkerContext, batch: Batch, steps: int, rows: Dataset) -> dict[str, Any]:
    """The arguments of TRL's configuration class for this stage."""
    payload, settings = job.payload, job.payload["settings"]
    cuda = torch.cuda.is_available()
    checkpoint_steps = job.resources["checkpoint_steps"]
    arguments: dict[str, Any] = {
        "output_dir": str(placement.workdir),
        "learning_rate": settings["learning_rate"],
        "num_train_epochs": 1,  # the epochs are laid one after the other, in their order
        "per_device_train_batch_size": batch.per_device,
        "gradient_accumulation_steps": batch.accumulation,
        "lr_scheduler_type": settings["lr_scheduler"],
        "warmup_steps": math.ceil(settings["warmup_ratio"] * steps),
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["max_grad_norm"],
        "adam_epsilon": settings["adam_epsilon"],
        "optim": "adamw_torch",
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "seed": payload["seed"],
        "data_seed": payload["seed"],
        "max_length": payload["max_length"],
        "model_init_kwargs": {"dtype": payload["dtype"]},
        "bf16": payload["dtype"] == "bfloat16",
        "use_cpu": not cuda,
        "deepspeed": placement.deepspeed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not a number must be seen
        "save_strategy": "steps" if steps > checkpoint_steps else "no",
        "save_steps": checkpoint_steps,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
    }
    if payload["kl_parameter"] is not None:
        arguments["precompute_ref_log_probs"] = job.resources["reference"] == "bank"
    if payload["method"] == "sft":
        arguments["dataset_kwargs"] = {"skip_prepare_dataset": True}
    elif payload["method"] == "dpo":
        arguments |= {
            "beta": payload["kl_parameter"],
            "loss_type": [settings["loss"]],
            "label_smoothing": settings["label_smoothing"],
        }
    elif payload["method"] == "kto":
        desirable, undesirable = class_weights(rows["label"])
        arguments |= {
            "beta": payload["kl_parameter"],
            "loss_type": settings["loss"],
            "desirable_weight": desirable,
            "undesirable_weight": undesirable,
        }
    return arguments


def class_weights(labels: list[bool]) -> tuple[float, float]:
    """KTO's weights of desirable and undesirable examples: the rarer class is raised until both weigh the same.

    This is the one place where imbalance is handled (KTO paper, Eq. 8: the ratio of the weighted counts is in [1,
    4/3]).

    Raises:
        StepError: all examples are of one class.
    """
    desirable = sum(labels)
    undesirable = len(labels) - desirable
    if not desirable or not undesirable:
        raise StepError(
            f"KTO needs both kinds of examples; here are {desirable} desirable and {undesirable} undesirable"
        )
    return max(1.0, undesirable / desirable), max(1.0, desirable / undesirable)


class DivergenceGuard(TrainerCallback):  # type: ignore[misc]
    """Refuses a loss or gradient that is no number, and a loss that has diverged, and hands checkpoints on."""

    def __init__(self, placement: WorkerContext, facts: Facts, steps: int) -> None:
        self.placement, self.facts, self.steps = placement, facts, steps
        self.first_loss: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.facts.first_update_at is None:
            self.facts.ready("engine")
            self.facts.first_update_at = self.facts.readied[-1][1]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        loss, norm = (logs or {}).get("loss"), (logs or {}).get("grad_norm") or 0.0
        if loss is None:
            return
        if self.first_loss is None:
            self.first_loss = loss
        limit = _DIVERGED * max(abs(self.first_loss), math.log(2))
        if not math.isfinite(loss) or not math.isfinite(norm) or loss > limit:
            raise StepError(
                f"diverged at update {state.global_step} of {self.steps}: the loss is {loss:g} (first "
                f"{self.first_loss:g}, limit {limit:g}), its gradient's norm {norm:g}; try a smaller learning_rate or "
                "max_grad_norm"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.placement.leaving():
            control.should_save = True
        if state.global_step >= self.steps:
            control.should_save = False  # the policy itself is written next

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.placement.on_checkpoint(self.placement.workdir / f"checkpoint-{state.global_step}", state.global_step)


def _effective(
    trainer: Any, payload: dict[str, Any], batch: Batch, used: int, placement: WorkerContext
) -> dict[str, Any]:
    """The settings as the built trainer holds them.

    Raises:
        StepError: one differs from what was requested.
    """
    args, settings = trainer.args, payload["settings"]
    effective: dict[str, Any] = {
        "learning_rate": args.learning_rate,
        "batch_size": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "lr_scheduler": str(args.lr_scheduler_type.value),
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "adam_epsilon": args.adam_epsilon,
        "gradient_checkpointing": args.gradient_checkpointing,
    }
    effective["epochs"] = len(trainer.order) // used
    wanted = {key: settings[key] for key in effective}
    if payload["kl_parameter"] is not None:
        effective["kl_parameter"] = trainer.beta
        wanted["kl_parameter"] = payload["kl_parameter"]
    if payload["method"] in ("dpo", "kto"):
        loss = trainer.loss_types[0] if payload["method"] == "dpo" else trainer.loss_type
        effective["loss"], wanted["loss"] = loss, settings["loss"]
    effective["seed"], wanted["seed"] = args.seed, payload["seed"]
    effective["zero_stage"] = trainer.accelerator.state.deepspeed_plugin.zero_stage if placement.deepspeed else 0
    wanted["zero_stage"] = 3 if placement.deepspeed else 0
    different = {key: (wanted[key], effective[key]) for key in wanted if wanted[key] != effective[key]}
    if different:
        raise StepError(f"settings without effect (requested, effective): {different}")
    return {
        **effective,
        "dtype": str(trainer.model.dtype),
        "per_device_batch": batch.per_device,
        "accumulation": batch.accumulation,
        "world_size": args.world_size,
    }


def _engine(trainer: Any, payload: dict[str, Any], placement: WorkerContext) -> dict[str, Any]:
    """What DeepSpeed's engine says of itself after training.

    Raises:
        StepError: it did not shard the parameters, or its batch is not the requested one.
    """
    if not placement.deepspeed:
        return {}
    engine = trainer.model_wrapped
    stage, batch = engine.zero_optimization_stage(), engine.train_batch_size()
    forward = payload["settings"]["batch_size"]
    if stage != 3 or batch != forward:
        raise StepError(f"DeepSpeed ran ZeRO stage {stage} with batches of {batch}; requested were 3 and {forward}")
    return {"engine_zero_stage": stage, "engine_batch_size": batch}


def _metrics(history: list[dict[str, Any]], steps: int, used: int, placement: WorkerContext) -> dict[str, Any]:
    losses = [entry["loss"] for entry in history if "loss" in entry]
    return {
        "updates": steps,
        "examples_per_epoch": used,
        "first_loss": losses[0],
        "final_loss": float(np.mean(losses[-max(1, len(losses) // 20) :])),
        "resumed": placement.resume_from is not None,
    }


def _held_out(trainer: Any, job: Job, placement: WorkerContext) -> dict[str, Any]:
    """How often the reward model prefers the chosen of a held-out pair (ties count half), and how sure it should be."""
    from sacpo.statistics.calibration import calibrate  # brings scipy, which other stages start faster without

    rows = whole_pairs(pq.read_table(job.parents["data"] / HELD_OUT).to_pylist())
    if not rows:
        raise StepError("no pair is held out for the judge; raise its held_out_fraction, or give it more pairs")
    margins = []
    trainer.model.eval()
    for row in rows:
        with torch.no_grad():
            chosen, rejected = (
                float(
                    trainer.model_wrapped(input_ids=torch.tensor([row[key]], device=trainer.args.device)).logits[0, 0]
                )
                for key in ("chosen_ids", "rejected_ids")
            )
        margins.append(chosen - rejected)
    calibration = asdict(calibrate(margins))
    if placement.rank == 0:
        (job.folder / CALIBRATION).write_text(json.dumps(calibration))
    accuracy = sum(0.5 if margin == 0 else float(margin > 0) for margin in margins) / len(rows)
    return {"held_out_pairs": len(rows), "held_out_accuracy": accuracy, "calibration": calibration}


def quiet() -> None:
    """Settings of the libraries that make no sense in a worker: no telemetry, no tokenizer threads."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
