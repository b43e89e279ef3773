"""Where each kind of step is carried out on a Ray cluster, and what it holds while it works.

`train` gets a worker group (`sacpo.cluster.trainer`). Steps that load a model are Ray tasks and hold what one worker
holds. The rest is light and runs in the process that asks, so that it never waits for an accelerator.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray

from sacpo.errors import StepError
from sacpo.execution.artifacts import REFERENCE, VERDICTS
from sacpo.execution.in_process import in_process, join
from sacpo.execution.job import ON_CPU, Job, workers_held

_SHARDED = {"judge": VERDICTS, "reference": REFERENCE}  # what each shard writes a part of


def execute(kind: str, job: Job) -> dict[str, Any]:
    """Carry a job out on the cluster; see `sacpo.execution.runner.Executor`.

    Raises:
        StepError: it failed; the message is the reason.
    """
    if kind == "train":
        from sacpo.cluster import trainer  # brings torch, which processes that only wait do without

        return trainer.train(job)
    resources = job.resources
    shards = workers_held(kind, job.payload, resources)
    if not shards:
        return in_process(kind, job)
    task = _task.options(
        scheduling_strategy="DEFAULT",  # not in the asking trial's placement group, which holds nothing
        num_cpus=resources["cpus_per_worker"],
        num_gpus=resources["gpus_per_worker"] if kind not in ON_CPU else 0,
        max_retries=resources["max_restarts"],
        name=job.step_id,
    )
    try:
        facts: list[dict[str, Any]] = ray.get(
            [task.remote(kind, replace(job, shard=(i, shards))) for i in range(shards)]
        )
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else StepError(str(error)) from error
    except ray.exceptions.WorkerCrashedError as error:
        raise StepError(f"the worker died {resources['max_restarts'] + 1} times") from error
    return facts[0] if shards == 1 else join(job, _SHARDED[kind], facts)


@ray.remote  # type: ignore[untyped-decorator]
def _task(kind: str, job: Job) -> dict[str, Any]:
    facts = in_process(kind, job)
    return facts if job.store.cache is None else facts | {"files": job.keep()}
