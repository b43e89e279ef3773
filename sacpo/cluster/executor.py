"""Where each kind of step is carried out on a Ray cluster, and what it holds while it works.

`train` gets a worker group (`sacpo.cluster.trainer`). Steps that load a model are Ray tasks and hold what one worker
holds. The rest is light and runs in the process that asks, so that it never waits for an accelerator.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import ray

from sacpo.cluster import trainer
from sacpo.errors import StepError
from sacpo.steps.job import Job, logged

# kind of step: (module, function). Imported where the step runs: torch stays out of processes that only wait.
_STEPS = {
    "model": ("sacpo.steps.model", "run"),
    "preferences": ("sacpo.steps.data", "sample"),
    "data": ("sacpo.steps.data", "run"),
    "merge": ("sacpo.steps.merge", "run"),
    "probabilities": ("sacpo.steps.probabilities", "run"),
    "respond": ("sacpo.steps.respond", "run"),
    "judge": ("sacpo.steps.judge", "run"),
}
_ON_DEVICE = ("probabilities", "respond")
_ON_CPU = ("model", "merge")


def execute(kind: str, job: Job) -> dict[str, Any]:
    """Carry a job out on the cluster; see `sacpo.runner.Executor`.

    Raises:
        StepError: it failed; the message is the reason.
    """
    if kind == "train":
        return trainer.train(job)
    scores_with_model = kind == "judge" and job.payload["judge"]["kind"] != "gold"
    if kind not in _ON_DEVICE + _ON_CPU and not scores_with_model:
        return _in_process(kind, job)
    resources = job.resources
    gpus = resources["gpus_per_worker"] if kind not in _ON_CPU else 0
    task = _task.options(
        scheduling_strategy="DEFAULT",  # not in the asking trial's placement group, which holds nothing
        num_cpus=resources["cpus_per_worker"],
        num_gpus=gpus,
        max_retries=resources["max_restarts"],
        name=job.step_id,
    )
    try:
        facts: dict[str, Any] = ray.get(task.remote(kind, job))
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else StepError(str(error)) from error
    except ray.exceptions.WorkerCrashedError as error:
        raise StepError(f"the worker died {resources['max_restarts'] + 1} times") from error
    return facts


@ray.remote  # type: ignore[untyped-decorator]
def _task(kind: str, job: Job) -> dict[str, Any]:
    return _in_process(kind, job)


def _in_process(kind: str, job: Job) -> dict[str, Any]:
    alive = time.time()
    with logged(job.logs / "worker-0.log"):
        module, function = _STEPS[kind]
        if kind in _ON_DEVICE + _ON_CPU:
            import torch

            torch.set_num_threads(job.resources["cpus_per_worker"])
        facts = getattr(importlib.import_module(module), function)(job)
        facts.alive = alive
    record: dict[str, Any] = facts.as_record()
    return record
