"""The training code of one worker process of a group (`sacpo.cluster.trainer` starts the group)."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.collective import broadcast_from_rank_zero

from sacpo.cluster.checkpoints import report_checkpoint, verify_checkpoint
from sacpo.cluster.workdir import workdir
from sacpo.compat.deepspeed import load_operator
from sacpo.execution.job import Job
from sacpo.execution.output_capture import quiet_libraries
from sacpo.execution.report import StepReport
from sacpo.planning.payloads import AnyTrainPayload
from sacpo.planning.records import StepResult

_PREEMPTION_CHECK_S = 5.0  # between two checks for a notice; Ray Train itself checks as often


def run_worker(config: dict[str, Any]) -> tuple[StepResult, str]:
    """Run a training step as one worker of its group.

    Args:
        config: The job, as `job`.

    Returns:
        The step's result and the id of this worker's node; Ray Train passes those of rank 0 on.
    """
    job: Job[AnyTrainPayload] = config["job"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    # Ray may reuse an idle process for this worker; then it belongs to this step only since the job was made.
    started_at = max(_process_start(), job.created_at)
    report = StepReport(started_at=started_at, workers=world_size, devices=world_size)
    report.end_start_part("process")
    _redirect_output(job.logs / f"worker-{rank}.log")
    quiet_libraries()
    from sacpo.steps import train as stage
    from sacpo.steps.worker_context import WorkerContext

    report.end_start_part("imports")
    with workdir(f"{job.step.id}-{rank}") as folder:
        resume_from = _download_checkpoint(folder, world_size)
        deepspeed = deepspeed_config(job) if job.resources.sharding == "zero3" else None
        report.end_start_part("group")
        worker = WorkerContext(
            world_size=world_size,
            rank=rank,
            deepspeed=deepspeed,
            resume_from=resume_from,
            on_checkpoint=report_checkpoint,
            workdir=folder,
            is_preempted=PreemptionWatcher(),
        )
        with job.staged_inputs():
            report = stage.run(job, worker, report)
        report.ended_at = time.time()
        return report.result(), ray.get_runtime_context().get_node_id()


def _download_checkpoint(folder: Path, workers: int) -> Path | None:
    """The last checkpoint in a folder of this machine; None if the stage starts from its beginning.

    Raises:
        DamagedCheckpoint: it is not as it was written.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    print(f"resuming from {checkpoint.path}", flush=True)
    checkpoint.to_directory(str(folder / "resumed"))
    verify_checkpoint(folder / "resumed", workers)
    return folder / "resumed"


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
    return {
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
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
        self._notified = False

    def __call__(self) -> bool:
        """Count an update; whether a notice has just arrived."""
        self._updates += 1
        if self._notified or self._updates < self._updates_per_check:
            return False
        now = time.monotonic()
        estimate = max(1, int(self._updates * _PREEMPTION_CHECK_S / (now - self._checked_at)))
        self._updates_per_check = broadcast_from_rank_zero(estimate)
        self._updates, self._checked_at = 0, now
        self._notified = ray.train.get_preemption_info() is not None
        return self._notified


def _redirect_output(path: Path) -> None:
    """Send everything that this process prints from now on to a file, which errors can name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _process_start() -> float:
    """When this process started, in seconds since the epoch; now on systems without `/proc`.

    psutil's `create_time` adds up from a boot time in whole seconds, which is too coarse for `start_seconds`.
    """
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.time()
    return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))
