"""The option that every benchmark has, `--smoke`, and sweeps that heed it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sacpo.sweep import main
from tests.commands import Answer, call, sweep


def parse(parser: argparse.ArgumentParser, **toy: Any) -> argparse.Namespace:
    """Parse the command line, with `--smoke` added.

    Args:
        parser: The benchmark's own options.
        toy: Defaults of these options under `--smoke`. Options that the command line sets keep their values.
    """
    parser.add_argument(
        "--smoke", action="store_true", help="run end to end at toy size, in seconds; the figures mean nothing"
    )
    if parser.parse_known_args()[0].smoke:
        parser.set_defaults(**toy)
    return parser.parse_args()


def is_smoke() -> bool:
    """Whether this process runs a benchmark at toy size."""
    return "--smoke" in sys.argv


def run_sweep(space: Path, results: Path, *more: str) -> Answer:
    """Run a sweep in a process of its own; at toy size in the calling process, without Ray.

    Raises:
        SystemExit: a trial failed; with the output.
    """
    if is_smoke():
        answer = call(main, str(space), "--results", str(results), *more)
    else:
        answer = sweep(space, results, *more, timeout=7200)
    if answer.returncode:
        raise SystemExit(answer.stdout + answer.stderr)
    return answer
