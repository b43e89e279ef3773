"""The executor of a Ray cluster: where each step runs, by what its kind holds (`sacpo.planning.kinds.Holds`).

A worker group is Ray Train's (`sacpo.cluster.trainer`), or separate tasks if the kind is sharded. Other steps that hold
something are one Ray task. Driver-side steps run in the process that asks, so that they never wait for an accelerator.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray

from sacpo.errors import StepError
from sacpo.execution.in_process import carry_out_logged, join_shards
from sacpo.execution.job import Job
from sacpo.planning.kinds import KINDS, Holds, holds, worker_slots
from sacpo.planning.plan import Step
from sacpo.planning.records import StepResult


def execute(job: Job[Any]) -> StepResult:
    """Carry a job out on the cluster; see `sacpo.execution.runner.Executor`.

    Raises:
        StepError: the step failed; the message is the reason.
    """
    held = holds(job.step.kind, job.payload)
    if held is Holds.NOTHING:
        return carry_out_logged(job)
    if trains_on_group(job.step):
        from sacpo.cluster import trainer  # imports torch, which processes that only wait do without

        return trainer.train(job)
    results = _run_tasks(job, worker_slots(job.step.kind, job.payload, job.resources))
    if len(results) == 1:
        return results[0]
    shard_file = KINDS[job.step.kind].shard_file
    assert shard_file is not None, "only a kind with a shard file is split"
    return join_shards(job, shard_file, results)


def trains_on_group(step: Step) -> bool:
    """Whether a step runs on Ray Train's worker groups."""
    return holds(step.kind, step.payload) is Holds.WORKER_GROUP and KINDS[step.kind].shard_file is None


def _run_tasks(job: Job[Any], count: int) -> list[StepResult]:
    """Run a step as `count` tasks, each with one shard and the resources of one worker."""
    accelerators = 0 if holds(job.step.kind, job.payload) is Holds.CPU_TASK else job.resources.gpus_per_worker
    task = (_accelerator_task if accelerators else _task).options(
        scheduling_strategy="DEFAULT",  # outside the calling trial's placement group, which has no CPUs
        num_cpus=job.resources.cpus_per_worker,
        num_gpus=accelerators,
        max_retries=job.resources.max_restarts,
        name=job.step.id,
    )
    try:
        results: list[StepResult] = ray.get([task.remote(replace(job, shard=(i, count))) for i in range(count)])
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else StepError(str(error)) from error
    except ray.exceptions.WorkerCrashedError as error:
        raise StepError(f"the worker died {job.resources.max_restarts + 1} times") from error
    return results


def _carry_out(job: Job[Any]) -> StepResult:
    result = carry_out_logged(job)
    return result if job.store.cache is None else result.model_copy(update={"files": job.upload()})


_task = ray.remote(_carry_out)
# Its process ends with it: a process keeps the accelerator that it used first, and memory there. Ray does the same for
# functions that are declared with accelerators, but not for those that get them by `options`.
_accelerator_task = ray.remote(max_calls=1)(_carry_out)
