"""The `train` step: one loop for all methods on TRL's trainers, the same on every worker.

The parent policy is where a stage starts and, for methods with a reference, also its reference policy. The KL parameter
is beta in a chain's first stage and beta/lambda after it (paper, Theorem 1). This module knows neither Ray nor
DeepSpeed: `sacpo.cluster.trainer` sets the processes up and passes the ZeRO-3 configuration and the checkpoint callback
in a `WorkerContext`.
"""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer
from transformers.utils import GENERATION_CONFIG_NAME

from sacpo.data.model_cache import MODEL_CACHE
from sacpo.data.tokenise import whole_pairs
from sacpo.errors import StepError
from sacpo.execution.artifacts import HELD_OUT, HISTORY
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.planning.metrics import JudgeAccuracy, TrainMetrics
from sacpo.planning.payloads import (
    AnyTrainPayload,
    DPOPayload,
    KTOPayload,
    RewardPayload,
    SFTPayload,
    kl_parameter,
    lora_of,
)
from sacpo.steps.adapters import finish_stage, prepare_stage, stage_model
from sacpo.steps.batch import Batch
from sacpo.steps.changed_weights import changed_weights, rounding_warning
from sacpo.steps.checkpoints import LocalCheckpoints
from sacpo.steps.course import Course
from sacpo.steps.divergence import DivergenceGuard
from sacpo.steps.effective import BuiltStage, effective_training
from sacpo.steps.examples import Examples, load_examples
from sacpo.steps.model_loading import load_options
from sacpo.steps.throughput import ThroughputCounter
from sacpo.steps.trainers import TRAINERS
from sacpo.steps.worker_context import WorkerContext


def run_alone(job: Job[AnyTrainPayload]) -> StepReport:
    """Train one stage in the calling process: one worker, no sharding. Resumes from a checkpoint in the store.

    Raises:
        StepError: as `run`.
    """
    MODEL_CACHE.clear()
    report = StepReport(devices=1)
    with LocalCheckpoints(job) as checkpoints:
        context = WorkerContext(
            world_size=1,
            rank=0,
            deepspeed=None,
            resume_from=checkpoints.latest(),
            on_checkpoint=checkpoints.keep,
            workdir=checkpoints.workdir,
        )
        return run(job, context, report)


def run(job: Job[AnyTrainPayload], context: WorkerContext, report: StepReport) -> StepReport:
    """Train one stage and, on the first worker, write the policy to the job's folder.

    Raises:
        StepError: the loss is not finite or diverged, a requested setting did not take effect, or there are fewer
            examples than one batch.
    """
    payload = job.payload
    torch.set_num_threads(job.resources.cpus_per_worker)
    tokenizer = AutoTokenizer.from_pretrained(job.parents["policy"])
    batch = Batch.of(payload, job.resources, context.world_size)
    examples = load_examples(job, batch)
    updates = payload.settings.epochs * (len(examples.rows) // batch.total)
    trainer_class, config_class = TRAINERS[payload.method]
    guard = DivergenceGuard(report, updates, context)
    trainer = trainer_class(
        **stage_model(job),
        args=config_class(**_arguments(job, context, batch, updates, examples)),
        train_dataset=examples.rows,
        processing_class=tokenizer,
        callbacks=[guard],
    )
    prepare_stage(trainer, job)
    trainer.counter, trainer.order = ThroughputCounter(), examples.order
    if job.resources.packing:
        trainer.pack()
    report.end_start_part("trainer")
    if trainer.args.world_size != context.world_size:
        raise StepError(f"the trainer sees {trainer.args.world_size} workers, the group has {context.world_size}")
    stage = BuiltStage(trainer, updates, len(examples.rows), examples.order)
    report.effective = effective_training(stage, payload, batch, zero_stage=3 if context.deepspeed else 0)
    trainer.train(resume_from_checkpoint=str(context.resume_from) if context.resume_from else None)
    if context.deepspeed:
        _check_engine(trainer, batch, is_offloaded=job.resources.optimizer_offload)
    elif trainer.model.dtype == torch.float32:
        trainer.model.to(getattr(torch, payload.dtype))  # rounded once, as ZeRO-3 rounds its float32 weights
    if trainer.state.global_step != updates:
        raise StepError(f"training ended after {trainer.state.global_step} of {updates} updates")
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    metrics = TrainMetrics(
        **vars(Course.of(history, payload)),
        updates=updates,
        examples_per_epoch=len(examples.rows),
        resumed=context.resume_from is not None,
        start_seconds=report.start_seconds(),
        reference_max_difference=trainer.reference_difference if kl_parameter(payload) is not None else None,
        throughput=trainer.counter.metrics(trainer, batch.total),
        judge=_accuracy(trainer, job) if isinstance(payload, RewardPayload) else None,
    )
    report.metrics = metrics
    trainer.save_model(str(job.folder))
    if context.rank == 0:
        (job.folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; the record holds the settings
        # The trainer aligns it with the tokenizer; the list of tokens that end an answer must stay the base model's.
        shutil.copyfile(job.parents["policy"] / GENERATION_CONFIG_NAME, job.folder / GENERATION_CONFIG_NAME)
        (job.folder / HISTORY).write_text(json.dumps(history))
        if lora_of(payload) is None:
            report.metrics = _with_changed_weights(metrics, job)
        finish_stage(job)
    trainer.accelerator.free_memory()  # ends DeepSpeed's engine: the process may train another stage
    return report


def _with_changed_weights(metrics: TrainMetrics, job: Job[AnyTrainPayload]) -> TrainMetrics:
    changed = changed_weights(job.parents["policy"], job.folder)
    warnings = (*metrics.warnings, *rounding_warning(changed, job.payload.dtype))
    return metrics.model_copy(update={"changed_weights": changed, "warnings": warnings})


def _arguments(
    job: Job[AnyTrainPayload], context: WorkerContext, batch: Batch, updates: int, examples: Examples
) -> dict[str, Any]:
    """The arguments of TRL's configuration class for this stage."""
    payload, settings = job.payload, job.payload.settings
    checkpoint_steps = job.resources.checkpoint_steps
    # Added to bfloat16 weights, an update below about 1/256 of a weight is lost. ZeRO-3 keeps float32 weights of its
    # own, and so does a stage without it; the forward pass computes in bfloat16 (autocast). Adapters are float32.
    all_weights_here = context.deepspeed is None and lora_of(payload) is None
    weights_dtype = "float32" if all_weights_here else payload.dtype
    arguments: dict[str, Any] = {
        "output_dir": str(context.workdir),
        "learning_rate": settings.learning_rate,
        "num_train_epochs": 1,  # the examples of all epochs follow one another in `order`
        "per_device_train_batch_size": batch.per_device,
        "gradient_accumulation_steps": batch.accumulation,
        "lr_scheduler_type": settings.lr_scheduler,
        "warmup_steps": math.ceil(settings.warmup_ratio * updates),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "adam_epsilon": settings.adam_epsilon,
        "optim": "adamw_torch",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "seed": payload.seed,
        "data_seed": payload.seed,
        "max_length": payload.max_length,
        "model_init_kwargs": {"dtype": weights_dtype, **load_options(payload.loading, getattr(torch, payload.dtype))},
        "bf16": payload.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "deepspeed": context.deepspeed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "save_strategy": "steps" if updates > checkpoint_steps else "no",
        "save_steps": checkpoint_steps,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
    }
    match payload:
        case SFTPayload():
            arguments["dataset_kwargs"] = {"skip_prepare_dataset": True}
        case DPOPayload():
            arguments |= {
                "beta": payload.kl_parameter,
                "loss_type": [payload.settings.loss],
                "label_smoothing": payload.settings.label_smoothing,
                "precompute_ref_log_probs": job.resources.reference == "precomputed",
            }
        case KTOPayload():
            desirable, undesirable = class_weights(examples.rows["label"])
            arguments |= {
                "beta": payload.kl_parameter,
                "loss_type": payload.settings.loss,
                "desirable_weight": desirable,
                "undesirable_weight": undesirable,
                "precompute_ref_log_probs": job.resources.reference == "precomputed",
            }
        case RewardPayload():
            pass  # has no arguments of its own
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
            f"KTO needs both kinds of examples; there are {desirable} desirable and {undesirable} undesirable ones"
        )
    return max(1.0, undesirable / desirable), max(1.0, desirable / undesirable)


def _check_engine(trainer: Any, batch: Batch, *, is_offloaded: bool) -> None:
    """Raises StepError if DeepSpeed's engine sharded, offloaded or batched otherwise than requested."""
    engine = trainer.model_wrapped
    effective = engine.zero_optimization_stage(), engine.train_batch_size(), engine.optimizer.offload_optimizer
    requested = 3, batch.total, is_offloaded
    if effective != requested:
        raise StepError(
            f"DeepSpeed ran with (ZeRO stage, batch size, optimizer offload) {effective}; requested were {requested}"
        )


def _accuracy(trainer: Any, job: Job[AnyTrainPayload]) -> JudgeAccuracy:
    """Share of held-out pairs of which the reward model prefers the chosen answer (ties half), and its calibration."""
    from sacpo.statistics.calibration import SMALLEST_SAMPLE, calibrate  # imports scipy
    from sacpo.statistics.win_rate import estimates

    pairs = whole_pairs(pq.read_table(job.parents["data"] / HELD_OUT)).to_pylist()
    if not pairs:
        raise StepError("no pair is held out for the judge; raise its held_out_fraction, or give it more pairs")
    trainer.model.eval()

    @torch.no_grad()
    def score(ids: list[int]) -> float:
        inputs = torch.tensor([ids], device=trainer.args.device)
        return float(trainer.model_wrapped(input_ids=inputs).logits[0, 0])

    margins = [score(pair["chosen_ids"]) - score(pair["rejected_ids"]) for pair in pairs]
    calibration = calibrate(margins, SMALLEST_SAMPLE)
    accuracy = estimates([[0.5 if margin == 0 else float(margin > 0)] for margin in margins])[0]
    return JudgeAccuracy(
        held_out_pairs=len(pairs),
        held_out_accuracy=accuracy.value,
        low=accuracy.low,
        high=accuracy.high,
        temperature=calibration.temperature,
        temperature_fitted=calibration.fitted,
        calibration_error=calibration.error,
        calibration_low=calibration.error_low,
        calibration_high=calibration.error_high,
        calibration_error_before=calibration.error_before,
        reliability=tuple((part.probability, part.share, part.n) for part in calibration.bins),
    )
