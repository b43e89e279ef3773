"""What `--status` says of sweeps, from what they left in their store."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sacpo.planning.planner import make_plan
from sacpo.store.heartbeat import LEASE
from sacpo.store.step_store import Store
from sacpo.store.sweep_registry import Register, sweeps
from tests.commands import run
from tests.spaces import space


def entry(folder: Path, started: float = 0.0) -> Register:
    sweep = {"run": f"run{started:g}", "results": "there", "command": ["sweep"], "started": started, "git_commit": None}
    return Register(make_plan(space()), Store(folder), sweep)


def test_a_sweep_is_running_then_how_it_ended(tmp_path: Path) -> None:
    with entry(tmp_path):
        assert [(s.name, s.state, s.done) for s in sweeps(Store(tmp_path))] == [("small", "running", 0)]
    assert [s.state for s in sweeps(Store(tmp_path))] == ["failed"]  # it ended, and nothing is done


def test_a_stopped_sweep_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), entry(tmp_path):
        raise KeyboardInterrupt
    assert [s.state for s in sweeps(Store(tmp_path))] == ["stopped"]


def test_a_killed_sweep_is_silent(tmp_path: Path) -> None:
    with entry(tmp_path, started=2.0):
        pass
    (tmp_path / "sweeps" / "run2.ended").unlink()
    os.utime(tmp_path / "sweeps" / "run2.beat", (0, time.time() - LEASE - 1))
    with entry(tmp_path, started=1.0):
        assert [s.state for s in sweeps(Store(tmp_path))] == ["silent", "running"]  # the latest first


def test_the_command_shows_a_results_folder_and_says_where_there_is_none(small_results: Path, tmp_path: Path) -> None:
    shown = run("sacpo.sweep", "--status", str(small_results))
    assert shown.returncode == 0, shown.stderr
    steps = len(list((small_results / "store" / "steps").iterdir()))
    assert f" done {steps} of {steps} 8 small ({small_results})" in " ".join(shown.stdout.split())
    nothing = run("sacpo.sweep", "--status", str(tmp_path))
    assert nothing.returncode == 2
    assert "give a results folder, or a store with --store" in nothing.stderr
