"""Carries steps out in the calling process: a single job, or a whole plan without Ray (`--address in-process`)."""

from __future__ import annotations

import importlib
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sacpo.errors import StepError, StoreError
from sacpo.execution.artifacts import shard_name
from sacpo.execution.job import Job
from sacpo.execution.output_capture import output_to, quiet_libraries
from sacpo.execution.runner import Runner
from sacpo.planning.kinds import KINDS, Holds, holds
from sacpo.planning.records import StepResult
from sacpo.planning.schedule import Pool, Schedule, scheduled_steps


def carry_out(job: Job[Any]) -> StepResult:
    """Carry a job out here, in this process's own terminal, so that a debugger can be used."""
    started_at = time.time()
    with job.staged_inputs():
        module, _, function = KINDS[job.step.kind].function.partition(":")
        if holds(job.step.kind, job.step.payload) is not Holds.NOTHING:
            import torch  # loaded by steps that compute; processes that only wait do without

            torch.set_num_threads(job.resources.cpus_per_worker)
        report = getattr(importlib.import_module(module), function)(job)
        report.started_at = started_at
    result: StepResult = report.result()
    return result


def carry_out_logged(job: Job[Any]) -> StepResult:
    """The same, with the output of libraries in the step's log."""
    with output_to(job.logs / f"worker-{job.shard[0]}.log"):
        return carry_out(job)


def execute(job: Job[Any]) -> StepResult:
    """The executor of `--address in-process`: one worker, no sharding."""
    alone = job.resources.model_copy(update={"workers": 1, "sharding": "ddp"})
    result = carry_out(replace(job, resources=alone))
    return result if job.store.cache is None else result.model_copy(update={"files": job.upload()})


class InProcessRun:
    """Runs steps of a plan one after the other, in the order of the schedule.

    Args:
        runner: Carries steps out.
        targets: The steps that are required.
    """

    def __init__(self, runner: Runner, targets: Iterable[str]) -> None:
        quiet_libraries()
        self.runner = runner
        done = runner.store.records(runner.plan.steps)
        self.schedule = Schedule(scheduled_steps(runner.plan), targets, done, worker_slots=1, driver_steps=1)

    def resolved(self) -> Collection[str]:
        """The steps that have ended."""
        return self.schedule.resolved()

    def run(self) -> dict[str, str]:
        """Carry all required steps out.

        Returns:
            Steps that were given up without an outcome in the store, and why: the store could not be used.
        """
        given_up: dict[str, str] = {}
        while not self.schedule.is_finished():
            step_id = self.schedule.pop_ready(Pool.DRIVER) or self.schedule.pop_ready(Pool.WORKERS)
            assert step_id is not None, "some step is ready until all are resolved"
            try:
                self.runner.ensure(step_id)
            except StepError:
                self.schedule.finish(step_id, succeeded=False)
            except StoreError as error:
                given_up[step_id] = str(error)
                self.schedule.finish(step_id, succeeded=False)
            else:
                self.schedule.finish(step_id, succeeded=True)
        return given_up


def join_shards(job: Job[Any], name: str, results: list[StepResult]) -> StepResult:
    """Put the parts together that the shards of a step wrote.

    Args:
        job: The step's job.
        name: Name of the file of which each shard wrote a part.
        results: The shards' results in order.
    """
    job.fetch_shards({name: digest for result in results for name, digest in (result.files or {}).items()})
    parts = [job.folder / shard_name(name, (i, len(results))) for i in range(len(results))]
    pq.write_table(pa.concat_tables([pq.read_table(path) for path in parts]), job.folder / name)
    for path in parts:
        path.unlink()
    metrics: Any = results[0].metrics
    for result in results[1:]:
        metrics = metrics.joined(result.metrics)
    started_at, ended_at = min(r.started_at for r in results), max(r.ended_at for r in results)
    return results[0].model_copy(
        update={
            "metrics": metrics,
            "workers": len(results),
            "seconds": ended_at - started_at,
            "device_seconds": sum(r.device_seconds for r in results),
            "started_at": started_at,
            "first_update_at": min(r.first_update_at for r in results),
            "ended_at": ended_at,
            "files": None,
        }
    )
