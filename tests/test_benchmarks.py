"""Every benchmark runs end to end at toy size and ends with its figures as one line of JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
from unittest import mock

import pytest

from tests.commands import Answer, call
from tests.spaces import ROOT

BENCHMARKS = sorted(path.stem for path in (ROOT / "tests" / "benchmarks").glob("[!_]*.py"))
ON_RAY = {"scheduling", "stage_overhead", "worker_death"}
"""Benchmarks that use a cluster at toy size too: here that of the session."""
QUICK = {"bootstrap", "certificate", "coverage", "human", "judging", "paper_at_7b", "racing", "soft_verdicts"}
"""Benchmarks that take at most a few seconds at toy size."""
LONG = {"gpu"}
"""Benchmarks that take minutes at toy size."""


def tier(name: str) -> list[pytest.MarkDecorator]:
    """The marks of a benchmark's test."""
    if name in LONG:
        return [pytest.mark.slow, pytest.mark.long]
    return [] if name in QUICK else [pytest.mark.slow]


def run_benchmark(name: str) -> Answer:
    """Run a benchmark at toy size in the calling process."""
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")

    def main(_: list[str]) -> int:
        benchmark.main()
        return 0

    with mock.patch.dict(os.environ), mock.patch.object(sys, "argv", [name, "--smoke"]):
        return call(main)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=tier(name)) for name in BENCHMARKS if name not in ON_RAY],
)
def test_a_benchmark_runs_at_toy_size(name: str) -> None:
    check(run_benchmark(name))


@pytest.mark.usefixtures("on_cluster")
@pytest.mark.parametrize("name", sorted(ON_RAY))
def test_a_benchmark_on_a_cluster_runs_at_toy_size(name: str) -> None:
    check(run_benchmark(name))


def check(answer: Answer) -> None:
    """The benchmark ended well, and its last line has figures."""
    assert answer.returncode == 0, answer.stdout + answer.stderr
    figures = json.loads(answer.stdout.splitlines()[-1])
    assert figures
    assert isinstance(figures, dict)


def test_there_are_benchmarks_to_run() -> None:
    assert set(BENCHMARKS) > QUICK | LONG | ON_RAY
    assert len(BENCHMARKS) > 12
