"""The quickstart, from an empty folder to its front, then once more: wall time by part, quality of the policies."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import pandas as pd

from sacpo.results import load
from sacpo.sweep import QUICKSTART
from tests.benchmarks._options import parse, run_sweep

TOY = [
    "model.hidden_size=16", "model.layers=1", "model.heads=2", "data.demonstrations.rows=512",
    *(f"data.preferences.{name}.rows=512" for name in ("helpfulness", "harmlessness")),
    "training.sft.epochs=1", "training.dpo.epochs=1", "chains.0.beta_over_lambda=1.0", "merges=[]",
    "evaluation.generation.samples=2",
]  # fmt: skip


def covered(intervals: list[tuple[float, float]]) -> float:
    """Seconds that the intervals cover together."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def shares(steps: pd.DataFrame, wall: float) -> tuple[float, float]:
    """(share of wall time with no worker alive, share with workers alive but none of them past its start)."""
    alive = covered(list(zip(steps["started_at"], steps["ended_at"], strict=True)))
    working = covered(list(zip(steps["first_update_at"], steps["ended_at"], strict=True)))
    return 1 - alive / wall, (alive - working) / wall


def main() -> None:
    """Run the sweep twice and print both times and what the tables hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="local", help="passed on to the sweep")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to the sweep")
    options = parse(parser, address="in-process")
    settings = [*(TOY if options.smoke else []), *options.set]
    more = ["--address", options.address, *(word for setting in settings for word in ("--set", setting))]
    with tempfile.TemporaryDirectory() as temporary:
        results = Path(temporary) / "results"
        seconds = []
        for _ in range(2):
            started = time.monotonic()
            answer = run_sweep(QUICKSTART, results, *more)
            seconds.append(time.monotonic() - started)
            if len(seconds) == 1:
                first = load(results)
        second = load(results)
        print(answer.stdout)
    orchestration, start = shares(first.steps, seconds[0])
    kinds = first.steps.groupby("kind")["seconds"].agg(["count", "sum", "median"]).round(1)
    print(kinds.to_string())
    figures = {
        "wall_seconds": round(seconds[0], 1),
        "second_run_seconds": round(seconds[1], 1),
        "second_run_steps": second.sweep.counts.steps_run - first.sweep.counts.steps_run,
        "steps_run": first.sweep.counts.steps_run,
        "steps_unique": int(first.steps["step_id"].nunique()),
        "orchestration_share": round(orchestration, 3),
        "start_share": round(start, 3),
        "min_support_mass": round(float(first.trials["support_mass"].min()), 4),
        "min_share_of_optimum": round(float(first.trials["share_of_optimum"].min()), 4),
    }
    for name, value in figures.items():
        print(f"{name:22} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
