"""Processes of Ray tasks: one carries many steps out, unless it held an accelerator."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import ray

from sacpo.cluster import executor
from sacpo.errors import StepError
from sacpo.execution.job import Job
from tests.jobs import MERGE, job, synthetic_model


@dataclass(frozen=True)
class ProcessJob(Job[Any]):
    """Writes the id of the process that should carry it out, and fails."""

    def staged_inputs(self) -> NoReturn:
        (self.folder / "process").write_text(str(os.getpid()))
        raise StepError("the process is known")


@pytest.mark.usefixtures("ray_cluster")
def test_processes_are_used_again_but_those_with_accelerators_end(tmp_path: Path) -> None:
    def processes(task: Any, name: str) -> set[str]:
        folders = [tmp_path / f"{name}{i}" for i in range(4)]
        for folder in folders:
            own = ProcessJob(**vars(job(folder, "model", synthetic_model())))
            with pytest.raises(StepError, match="the process is known"):
                ray.get(task.options(num_cpus=1).remote(own))
        return {(folder / "process").read_text() for folder in folders}

    assert len(processes(executor._task, "task")) < 4
    assert len(processes(executor._accelerator_task, "accelerator")) == 4


@pytest.mark.parametrize(
    ("kind", "payload", "gpus", "expected"),
    [
        ("generate", MERGE, 1, ("_accelerator_task", 1)),
        ("generate", MERGE, 0, ("_task", 0)),
        ("model", synthetic_model(), 1, ("_task", 0)),
    ],
)
def test_a_step_that_holds_an_accelerator_has_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, payload: Any, gpus: int, expected: tuple[str, int]
) -> None:
    for name in ("_task", "_accelerator_task"):
        task = SimpleNamespace(
            options=lambda task=name, **options: SimpleNamespace(remote=lambda _: (task, options["num_gpus"]))
        )
        monkeypatch.setattr(executor, name, task)
    monkeypatch.setattr(ray, "get", lambda references: references)
    assert executor._run_tasks(job(tmp_path, kind, payload, gpus_per_worker=gpus), 1) == [expected]
