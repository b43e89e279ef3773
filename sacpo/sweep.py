"""`sacpo sweep [SPACE]`: runs a space to its Pareto front, or continues a run that was stopped."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sacpo.command_line import command, parse
from sacpo.data.formats import source_hint
from sacpo.errors import SacpoError
from sacpo.planning.planner import make_plan
from sacpo.results.kept_plan import find_kept, kept_proposals, refusal, with_added_judges
from sacpo.spaces.loading import load_space
from sacpo.store.results_location import DEFAULT_RESULTS, ResultsLocation
from sacpo.store.step_store import Store

QUICKSTART = Path(__file__).parent / "quickstart.yaml"
"""The space that runs if none is given; `tune_spaces/quickstart.yaml` is the same file."""


@command
def main(argv: list[str] | None = None) -> int:
    """The command.

    Exit status: 0 all trials are done, 1 some failed or the run was stopped, 2 bad input, which no failed step is.
    """
    arguments = parse(_parser(), argv)
    if arguments.status is not None:
        from sacpo.reporting.status import status_text

        _print(status_text(arguments.status or None, arguments.store))
        return 0
    return _sweep(arguments, ("sacpo", "sweep", *(sys.argv[1:] if argv is None else argv)))


def _sweep(arguments: argparse.Namespace, command: Sequence[str]) -> int:
    only_shown: bool = arguments.dry_run
    space = load_space(arguments.space, arguments.set, only_shown, source_hint)
    location = ResultsLocation(arguments.results or DEFAULT_RESULTS / space.name)
    kept = find_kept(location)
    plan = make_plan(space, not arguments.skip_canaries, only_shown, kept_proposals(kept, space))
    kept_store = location.default_store
    if kept is not None and kept.facts is not None:
        kept_store = location.resolve(kept.facts.store)
    store = Store(kept_store if arguments.store is None else arguments.store)
    problem = None if kept is None else refusal(kept.plan, plan, location, kept_store)
    if arguments.dry_run:
        from sacpo.reporting.plan_text import describe_plan

        note = "" if problem is None else f"\nnote: the results folder cannot be used: {problem}"
        _print(describe_plan(plan, store) + note)
        return 0
    if problem is not None:
        raise SacpoError(problem)
    if arguments.inspect:
        from sacpo.runs.inspect_run import inspect

        text, status = inspect(plan, store)
        _print(text)
        return status
    if kept is not None:
        plan = with_added_judges(plan, kept.plan)
    from sacpo.runs.search_run import run_to_end
    from sacpo.runs.sweep_run import SweepRun

    return run_to_end(SweepRun(plan, store, location, kept, arguments.address, command, arguments.max_workers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sacpo sweep", description="Sweep beta/lambda and merge ratios of SACPO to a Pareto front."
    )
    parser.add_argument("space", nargs="?", type=Path, default=QUICKSTART, help="a YAML file (default: the quickstart)")
    parser.add_argument(
        "--results", help="folder or bucket's URI for tables and plots (default: results/<name of the space>)"
    )
    parser.add_argument(
        "--store",
        help="folder or bucket's URI of the outputs of steps, shared by sweeps (default: the store that the results "
        "folder has, else <results>/store)",
    )
    parser.add_argument(
        "--address",
        default="local",
        help="local (default), auto, ray://HOST:PORT, or in-process: every step in this process, without Ray",
    )
    parser.add_argument(
        "--max-workers",
        type=int,
        default=0,
        metavar="WORKERS",
        help="number of workers that a cluster with an autoscaler can grow to",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the space")
    parser.add_argument(
        "--skip-canaries", action="store_true", help="do not try the judges before training (sweep.json records it)"
    )
    parser.add_argument(
        "--status",
        nargs="?",
        const="",
        metavar="RESULTS",
        help="show the sweeps of a results folder's store, or of all results folders here",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and touch nothing")
    parser.add_argument(
        "--inspect",
        action="store_true",
        help="show and check what the model will see (rendered examples, lengths, rows left out); trains nothing",
    )
    return parser


def _print(text: str) -> None:
    """Print, also if the reader closes the pipe early (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's flush at exit


if __name__ == "__main__":
    sys.exit(main())
