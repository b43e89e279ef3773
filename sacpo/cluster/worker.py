"""The training code of one worker process of a group (`sacpo.cluster.worker_groups`)."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.collective import broadcast_from_rank_zero

from sacpo.cluster.checkpoints import GroupCheckpoints
from sacpo.cluster.workdir import workdir
from sacpo.cluster.worker_groups import StageEnd
from sacpo.compat.deepspeed import load_operator
from sacpo.execution.job import Job
from sacpo.execution.output_capture import quiet_libraries, skip_libraries
from sacpo.execution.report import StepReport
from sacpo.planning.payloads import AnyTrainPayload
from sacpo.store.heartbeat import start_ticks

_PREEMPTION_CHECK_S = 5.0  # between two checks for a notice; Ray Train itself checks as often


def run_worker(config: dict[str, Any]) -> None:
    """Train the stages of a group, one after the other, as one of its workers.

    Args:
        config: `mailbox` and the id of the `group` in it.
    """
    mailbox, group = config["mailbox"], config["group"]
    rank = ray.train.get_context().get_world_rank()
    number = 0
    for turn in itertools.count():
        number, job = ray.get(mailbox.take.remote(group, number, rank))
        if job is None:
            return
        if turn == 0:  # Ray may reuse an idle process for this worker; then it belongs to this group only since then
            started_at = max(_process_start(), job.created_at)
        else:
            started_at = time.time()
            _reset_peak_memory()
        end = _train(job, started_at)
        gc.collect()  # the memory of the stage's engine
        ray.get(mailbox.give_back.remote(group, number, rank, end))
        if end.is_leaving:
            return
        number += 1


def _train(job: Job[AnyTrainPayload], started_at: float) -> StageEnd:
    """Train one stage as one worker of the group."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    report = StepReport(started_at=started_at, workers=world_size, devices=world_size)
    report.end_start_part("process")
    _redirect_output(job.logs / f"worker-{rank}.log")
    quiet_libraries()
    skip_libraries(unused_libraries(job.payload))
    from sacpo.steps import train as stage
    from sacpo.steps.worker_context import WorkerContext

    report.end_start_part("imports")
    with workdir(f"{job.step.id}-{rank}") as folder:
        checkpoints = GroupCheckpoints(job, rank, world_size)
        resume_from = checkpoints.latest(folder / "resumed")
        if resume_from is not None:
            print(f"resuming from {resume_from}", flush=True)
        deepspeed = deepspeed_config(job) if job.resources.sharding == "zero3" else None
        report.end_start_part("group")
        watcher = PreemptionWatcher()
        worker = WorkerContext(
            world_size=world_size,
            rank=rank,
            deepspeed=deepspeed,
            resume_from=resume_from,
            on_checkpoint=checkpoints.keep,
            workdir=folder,
            is_preempted=watcher,
        )
        with job.staged_inputs():
            report = stage.run(job, worker, report)
        report.ended_at = time.time()
        return StageEnd(report.result(), ray.get_runtime_context().get_node_id(), watcher.notified)


def unused_libraries(payload: AnyTrainPayload) -> set[str]:
    """What a worker need not import; all stages of a sweep load one model, so its group's next stages neither."""
    return {"mlflow", "wandb"} | (set() if payload.loading.quantization else {"bitsandbytes"})


def deepspeed_config(job: Job[AnyTrainPayload]) -> dict[str, Any]:
    """Attach DeepSpeed to the process group that Ray Train made.

    Returns:
        DeepSpeed's configuration for ZeRO-3.
    """
    on_cpu = not job.resources.gpus_per_worker
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed builds its CPU communication with ninja, which is beside this Python but maybe not on the PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    import deepspeed

    if on_cpu:
        load_operator()
    deepspeed.init_distributed(dist_backend="gloo" if on_cpu else "nccl", auto_mpi_discovery=False)
    zero: dict[str, Any] = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    if job.resources.optimizer_offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": not on_cpu}
    return {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # the trainer's own AdamW, so that offloading changes no result
        "bf16": {"enabled": job.payload.dtype == "bfloat16"},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }


class PreemptionWatcher:
    """Tells when the group learns that it will lose a node: True once, on all workers after the same update.

    Ray Train answers the same to all workers, by a call to an actor, so it is asked only every few seconds. Rank 0
    measures how many updates these are and broadcasts the number.
    """

    def __init__(self) -> None:
        self._checked_at = time.monotonic()
        self._updates, self._updates_per_check = 0, 1
        self.notified = False

    def __call__(self) -> bool:
        """Count an update; whether a notice has just arrived."""
        self._updates += 1
        if self.notified or self._updates < self._updates_per_check:
            return False
        now = time.monotonic()
        estimate = max(1, int(self._updates * _PREEMPTION_CHECK_S / (now - self._checked_at)))
        self._updates_per_check = broadcast_from_rank_zero(estimate)
        self._updates, self._checked_at = 0, now
        self.notified = ray.train.get_preemption_info() is not None
        return self.notified


def _redirect_output(path: Path) -> None:
    """Send everything that this process prints from now on to a file, which errors can name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _reset_peak_memory() -> None:
    """Forget the largest memory that an earlier stage in this process has held (proc(5), `clear_refs`)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # a system without /proc
        Path("/proc/self/clear_refs").write_text("5")


def _process_start() -> float:
    """When this process started, in seconds since the epoch; now on systems without `/proc`.

    psutil's `create_time` adds up from a boot time in whole seconds, which is too coarse for `start_seconds`.
    """
    ticks = start_ticks(os.getpid())
    if not ticks:
        return time.time()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - (uptime - int(ticks) / os.sysconf("SC_CLK_TCK"))
