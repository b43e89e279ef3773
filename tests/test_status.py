"""`sacpo sweep --status`: the state of sweeps, from what they wrote into their store."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from sacpo import sweep as sweep_module
from sacpo.planning.plan import read_plan
from sacpo.planning.planner import make_plan
from sacpo.store.heartbeat import LEASE_S
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import Store
from sacpo.store.sweep_registry import Registration, sweeps
from tests.commands import call
from tests.spaces import space


def registration(store: Path, started: float = 0.0) -> Registration:
    """A run of the small space whose results are beside the store."""
    results = ResultsLocation(store.parent / "elsewhere")
    return Registration(make_plan(space()), Store(store), results, f"run{started:g}", ["sweep"], started)


def test_a_sweep_is_running_then_how_it_ended(tmp_path: Path) -> None:
    with registration(tmp_path):
        assert [(s.name, s.state, s.done) for s in sweeps(Store(tmp_path))] == [("small", "running", 0)]
    assert [s.state for s in sweeps(Store(tmp_path))] == ["failed"]  # it ended, and no step is done


def test_a_stopped_sweep_is_shown_as_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), registration(tmp_path):
        raise KeyboardInterrupt
    assert [s.state for s in sweeps(Store(tmp_path))] == ["stopped"]


def test_a_killed_sweep_is_silent(tmp_path: Path) -> None:
    with registration(tmp_path, started=2.0):
        pass
    (tmp_path / "sweeps" / "run2.ended").unlink()
    os.utime(tmp_path / "sweeps" / "run2.beat", (0, time.time() - LEASE_S - 1))
    with registration(tmp_path, started=1.0):
        assert [s.state for s in sweeps(Store(tmp_path))] == ["silent", "running"]  # the latest first


def test_the_store_keeps_the_plan_of_each_run_and_damaged_entries_are_left_out(tmp_path: Path) -> None:
    for started in (1.0, 2.0):
        with registration(tmp_path, started):
            pass
    kept = read_plan((tmp_path / "sweeps" / "run1.plan.json").read_bytes(), "run1.plan.json")
    assert kept == make_plan(space())
    (status, _) = sweeps(Store(tmp_path))
    assert (status.steps, status.trials) == (len(kept.steps), len(kept.trials))
    (tmp_path / "sweeps" / "run2.plan.json").write_text("{")
    assert [s.started_at for s in sweeps(Store(tmp_path))] == [1.0]


def test_the_command_shows_a_results_folder_also_where_it_was_copied_to(
    in_process_results: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(in_process_results, tmp_path / "copied"))
    steps = len(list((copied / "store" / "steps").iterdir()))
    for folder in (in_process_results, copied):
        answer = call(sweep_module.main, "--status", str(folder))
        assert answer.returncode == 0, answer.stderr
        assert f" done {steps} of {steps} 8 small ({folder})" in " ".join(answer.stdout.split())
    by_store = call(sweep_module.main, "--status", "--store", str(copied / "store"))
    assert f"small ({copied})" in by_store.stdout


def test_the_command_says_how_to_name_a_sweep_if_there_is_none(tmp_path: Path) -> None:
    answer = call(sweep_module.main, "--status", str(tmp_path))
    assert answer.returncode == 2
    assert "give a results folder, or a store with --store" in answer.stderr
