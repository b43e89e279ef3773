"""Every benchmark runs end to end at toy size and ends with its figures as one line of JSON."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from unittest import mock

import pytest

from tests.commands import Answer, call
from tests.spaces import ROOT

BENCHMARKS = sorted(path.stem for path in (ROOT / "tests" / "benchmarks").glob("[!_]*.py"))
ON_RAY = {"scheduling", "stage_overhead", "worker_death"}
"""Benchmarks that start Ray at toy size too. They need a process of their own, and are slow."""
SLOW = ON_RAY | {"gpu", "paper_grid", "s3_store", "soak"}
"""Benchmarks that start other processes, or take longer than a few seconds at toy size."""


def run_benchmark(name: str) -> Answer:
    """Run a benchmark at toy size, in the calling process unless it starts Ray."""
    module = f"tests.benchmarks.{name}"
    if name in ON_RAY:
        command = [sys.executable, "-m", module, "--smoke"]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, check=False)
    benchmark = importlib.import_module(module)

    def main(_: list[str]) -> int:
        benchmark.main()
        return 0

    with mock.patch.dict(os.environ), mock.patch.object(sys, "argv", [name, "--smoke"]):
        return call(main)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in BENCHMARKS]
)
def test_a_benchmark_runs_at_toy_size(name: str) -> None:
    answer = run_benchmark(name)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    figures = json.loads(answer.stdout.splitlines()[-1])
    assert figures
    assert isinstance(figures, dict)


def test_there_are_benchmarks_to_run() -> None:
    assert set(BENCHMARKS) > SLOW
    assert len(BENCHMARKS) > 12
