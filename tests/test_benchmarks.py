"""Every benchmark runs end to end at toy size and ends with its figures as one line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.spaces import ROOT

BENCHMARKS = sorted(path.stem for path in (ROOT / "tests" / "benchmarks").glob("[!_]*.py"))
# These take a few seconds; the others start clusters, worker groups or several processes.
QUICK = {"bootstrap", "coverage", "generation", "judging", "merge_sweep"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BENCHMARKS]
)
def test_a_benchmark_runs_at_toy_size(name: str) -> None:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--smoke"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    figures = json.loads(answer.stdout.splitlines()[-1])
    assert figures
    assert isinstance(figures, dict)


def test_there_are_benchmarks_to_run() -> None:
    assert set(BENCHMARKS) > QUICK
    assert len(BENCHMARKS) > 12
