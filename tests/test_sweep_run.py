"""The sweep command around a cluster, with a stand-in for the cluster that carries steps out in this process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from sacpo import results
from sacpo import sweep as sweep_module
from sacpo.cluster import preflight, tuner
from sacpo.errors import ClusterError
from sacpo.execution.in_process import InProcessRun, execute
from sacpo.execution.runner import Runner
from sacpo.planning.plan import Plan
from sacpo.store.step_store import Store
from tests.commands import Answer, call, write_space
from tests.spaces import small


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the cluster: its notes, its output, and the way in which it runs trials."""

    @contextlib.contextmanager
    def cluster(address: str) -> Iterator[None]:
        os.write(2, b"output of a library\n")
        yield

    def run_trials(plan: Plan, store: Store, run: str, folder: Path, max_workers: int, trial_ids: list[str]) -> Any:
        trials = [trial for trial in plan.trials if trial.trial_id in trial_ids]
        targets = [step for trial in trials for step in plan.target_steps(trial)]
        return InProcessRun(Runner(plan, store, run, execute), targets).run()

    monkeypatch.setattr(tuner, "cluster", cluster)
    monkeypatch.setattr(tuner, "run_trials", run_trials)
    monkeypatch.setattr(tuner, "resolved", lambda run: set())
    monkeypatch.setattr(preflight, "check_cluster", lambda *_: ["memory was not checked"])


def sweep(space: Path, folder: Path, *more: str) -> Answer:
    """Run the command with the default address."""
    return call(sweep_module.main, str(space), "--results", str(folder), *more)


@pytest.mark.usefixtures("stand_in")
def test_a_sweep_on_a_cluster_shows_its_notes_and_keeps_the_output_of_libraries_apart(
    copied: Path, tmp_path: Path
) -> None:
    for record in (copied / "store" / "steps").glob("probabilities-*/record.json"):
        record.unlink()
    answer = sweep(write_space(small(), tmp_path), copied)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "note: memory was not checked" in answer.stdout
    assert "probabilities sft: " in answer.stdout
    assert "output of a library" not in answer.stdout + answer.stderr
    assert "output of a library" in (copied / "sweep.log").read_text()
    facts = results.load(copied).sweep
    assert facts.notes == ("memory was not checked",)
    assert [run.address for run in facts.runs] == ["in-process", "local"]


@pytest.mark.usefixtures("stand_in")
def test_a_sweep_that_the_cluster_refuses_leaves_a_new_folder_free_for_another_space(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> list[str]:
        raise ClusterError("the model fits no worker")

    monkeypatch.setattr(preflight, "check_cluster", refuse)
    folder = tmp_path / "new"
    answer = sweep(write_space(small(), tmp_path), folder)
    assert answer.returncode == 2
    assert "the model fits no worker" in answer.stderr
    assert not (folder / "plan.json").exists()
    assert not (folder / "sweep.json").exists()
    # An existing sweep is as it was.
    before = json.loads((copied / "sweep.json").read_text())
    for record in (copied / "store" / "steps").glob("probabilities-*/record.json"):
        record.unlink()
    assert sweep(write_space(small(), tmp_path), copied).returncode == 2
    assert json.loads((copied / "sweep.json").read_text()) == before


@pytest.mark.usefixtures("stand_in")
def test_a_sweep_whose_trials_can_never_fit_ends_with_2_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tests.test_dispatch` has the refusal itself."""

    def refuse(*_: Any, **__: Any) -> dict[str, str]:
        raise ClusterError("no trial can ever run")

    monkeypatch.setattr(tuner, "run_trials", refuse)
    answer = sweep(write_space(small(), tmp_path), tmp_path / "results")
    assert answer.returncode == 2
    assert "no trial can ever run" in answer.stderr
    assert not list((tmp_path / "results" / "store").glob("steps/*"))


@pytest.mark.parametrize("refusals", [2, 3])
def test_a_head_node_that_has_just_started_is_asked_three_times(refusals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of Ray Client refuses a client with the traceback of what failed there."""
    asked = []

    def init(**given: Any) -> None:
        asked.append(given["address"])
        if len(asked) <= refusals:
            raise ConnectionAbortedError("Initialization failure from server:\nTraceback\nRuntimeError: no process\n")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)  # other tests of this process have a cluster
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        refused: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        if refusals == 3:
            message = r"no process for this command \(RuntimeError: no process\).*repeat"
            refused = pytest.raises(ClusterError, match=message)
        with refused, tuner.cluster(address):
            pass
    assert asked == [address] * 3
