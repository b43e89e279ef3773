"""Training steps on Ray Train: a stage that survives the death of its workers, seen from the driver side.

`sacpo.cluster.worker_groups` has the groups; their processes run `sacpo.cluster.worker`.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import ray
import ray.util.scheduling_strategies
from ray.train import FailureConfig, RunConfig, ScalingConfig

from sacpo.cluster.checkpoints import DamagedCheckpoint
from sacpo.cluster.worker import run_worker
from sacpo.cluster.worker_groups import GROUPS
from sacpo.compat.ray_train import ReleasePlacementGroup, TorchConfig, TorchTrainer, training_error
from sacpo.errors import SacpoError, StepError
from sacpo.execution.job import Job
from sacpo.execution.resources import worker_resources
from sacpo.planning.payloads import AnyTrainPayload
from sacpo.planning.records import StepResult

_START_TIMEOUT_S = "1800"  # how long a group waits for its placement group before Ray Train tries again


def train(job: Job[AnyTrainPayload]) -> StepResult:
    """Run a training step on a worker group and wait for it.

    If a worker dies, another group continues from the last checkpoint, `resources.max_restarts` times, or from the
    beginning of the stage if that checkpoint is damaged. An error that the training code raised is final.

    Raises:
        StepError: training failed; the message is the reason.
        DamagedCheckpoint: a checkpoint is damaged and the group may not restart again.
    """
    resources = job.resources
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _START_TIMEOUT_S)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    for attempt in range(resources.max_restarts + 1):
        try:
            with GROUPS.group(job, functools.partial(_run_group, job)) as group:
                end = group.train(job)
            if job.store.cache is None:
                return end.result
            return end.result.model_copy(update={"files": _upload(job, end.node_id)})
        except Exception as error:
            raised = own_error(error)
            is_last = attempt == resources.max_restarts
            if isinstance(raised, DamagedCheckpoint):
                job.store.delete_checkpoints(job.step.id)
            if raised is not None and (is_last or not isinstance(raised, DamagedCheckpoint)):
                raise raised from error
            if is_last:
                raise StepError(f"the workers died {attempt + 1} times: {_last_line(error)}") from error
            logging.getLogger(__name__).warning("%s: restarting after %s", job.step.id, _last_line(error))
    raise AssertionError("unreachable: the last attempt returns or raises")


def _run_group(job: Job[AnyTrainPayload], mailbox: Any, group: str) -> None:
    """Run a worker group until it ends; NCCL with accelerators, gloo without.

    Args:
        job: The job of its first stage.
        mailbox: Where it takes its stages from.
        group: Its id.
    """
    resources = job.resources
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"mailbox": mailbox, "group": group},
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=worker_resources(resources),
        ),
        run_config=RunConfig(
            # Ray Train wants a folder; it disappears with the checkpoints of the first stage.
            name=f"group-{group}",
            storage_path=job.store.checkpoint_uri(job.step.id),
            storage_filesystem=job.store.filesystem(),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=resources.max_restarts),
            callbacks=[ReleasePlacementGroup()],
        ),
    )
    trainer.fit()


def _upload(job: Job[AnyTrainPayload], node_id: str) -> dict[str, str]:
    """Upload the output from the node that wrote it, holding no accelerator meanwhile; digests by name."""
    node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(Job.upload).options(num_cpus=0, scheduling_strategy=node, name=f"{job.step.id} upload")
    digests: dict[str, str] = ray.get(task.remote(job))
    return digests


def own_error(error: Exception) -> SacpoError | None:
    """The error of a worker group as this package raises it.

    Args:
        error: Raised by `fit`, or by the upload after it.

    Returns:
        None if a worker, its node or the controller died, so that the group may restart.
    """
    raised = training_error(error)
    if raised is None or isinstance(raised, SacpoError):
        return raised
    return StepError(f"{type(raised).__name__}: {_last_line(raised)}")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__
