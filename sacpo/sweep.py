"""`python -m sacpo.sweep`: run a space to its Pareto front, or go on where the same command stopped."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from sacpo.errors import SacpoError, StoreError
from sacpo.planning.cost_estimate import describe_judging
from sacpo.planning.identity import content_id
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.spaces.evaluation import LLMJudge
from sacpo.spaces.loading import load_space
from sacpo.spaces.space import Space
from sacpo.spaces.validation import dotted, judges
from sacpo.store import sweep_registry as status
from sacpo.store.backends import check
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import CorruptOutput, Store
from sacpo.versions import PACKAGES, commit, version

QUICKSTART = Path(__file__).parent.parent / "tune_spaces" / "quickstart.yaml"


def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 all trials ended well, 1 some failed or the run was stopped, 2 bad input."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.status is not None:
            asked = status.stores(arguments.status or None, arguments.store)
            _show(status.describe([sweep for store in asked for sweep in status.sweeps(store)]))
            return 0
        space = load_space(arguments.space, arguments.set)
        plan = make_plan(space, canaries=not arguments.skip_canaries)
        home = ResultsLocation(arguments.results or Path("results") / space.name)
        store = Store(arguments.store if arguments.store is not None else home.store)
        if arguments.dry_run:
            _show(describe(plan, store))
            return 0
        if arguments.address == "local":
            _check_keys(space)
        for option, files in (("--results", home.files), ("--store", store.files)):
            try:
                check(files)
            except StoreError as error:
                raise SacpoError(f"{error}; give another place with {option}") from None
        return _run(plan, store, home, arguments.address, arguments.max_workers)
    except SacpoError as error:  # a step's own failure ends in the tables; what reaches this is the input's
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sacpo.sweep", description="Sweep beta/lambda and merge ratios of SACPO to a Pareto front."
    )
    parser.add_argument("space", nargs="?", type=Path, default=QUICKSTART, help="a YAML file (default: the quickstart)")
    parser.add_argument(
        "--results", help="folder or s3:// URI for tables and plots (default: results/<name of the space>)"
    )
    parser.add_argument(
        "--store", help="folder or s3:// URI of steps' outputs, shared by sweeps (default: <results>/store)"
    )
    parser.add_argument("--address", default="local", help="local (default), auto, or ray://HOST:PORT")
    parser.add_argument(
        "--max-workers",
        type=int,
        default=0,
        metavar="WORKERS",
        help="workers that a cluster with an autoscaler may grow to",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the space")
    parser.add_argument("--skip-canaries", action="store_true", help="do not try the judges first (it is recorded)")
    parser.add_argument(
        "--status",
        nargs="?",
        const="",
        metavar="RESULTS",
        help="show the sweeps of a results folder's store, or of all",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and touch nothing")
    return parser


def _show(text: str) -> None:
    """Print, also to a reader that has seen enough (`| head`)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what the interpreter flushes at its end


def describe(plan: Plan, store: Store) -> str:
    """The plan as text: trials, steps, what the store has already, what will train, what sharing saves."""
    counts: dict[str, list[int]] = {}
    records = store.records(plan.steps)
    for step in plan.steps.values():
        done = step.id in records
        total = counts.setdefault(step.kind, [0, 0])
        total[0] += 1
        total[1] += done
    shared, alone = plan.trainings()
    lines = [f"space {plan.space.name}: {len(plan.trials)} trials, {len(plan.steps)} steps"]
    lines += [f"  {kind:14} {total:4} steps, {done} in the store already" for kind, (total, done) in counts.items()]
    will_train = counts.get("train", [0, 0])[0] - counts.get("train", [0, 0])[1]
    lines.append(f"trainings: {shared} with shared stages, {alone} without: sharing saves {alone - shared}")
    lines.append(f"will train now: {will_train}")
    lines += describe_judging(plan, records.__contains__)
    lines += [f"note: {note}" for note in plan.notes]
    lines.append("trials:")
    lines += [f"  {trial.label}" for trial in plan.trials]
    return "\n".join(lines)


def _check_keys(space: Space) -> None:
    """LLM judges' keys come from the environment of the process that runs trials, which on this machine has ours."""
    for where, judge in judges(space):
        if isinstance(judge, LLMJudge) and judge.api_key_env is not None and not os.environ.get(judge.api_key_env):
            raise SacpoError(
                f"{dotted(where)}.api_key_env: the environment variable {judge.api_key_env} is not set; put the "
                "endpoint's key in it, or set api_key_env to null for an endpoint that asks for none"
            )


def _run(plan: Plan, store: Store, home: ResultsLocation, address: str, max_workers: int) -> int:
    from rich.console import Console

    from sacpo.execution.job import logged
    from sacpo.report import write_report
    from sacpo.reporting.live import Progress
    from sacpo.results import tables

    # What libraries print goes to a file: the terminal is for the sweep. The console keeps the real output.
    terminal = os.fdopen(os.dup(1), "w")
    console = Console(file=terminal, width=None if terminal.isatty() else 160)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    folder = home.fetch()
    sweep = _facts(plan, store, home, argv=sys.argv)
    for retracted in _verify_leaves(plan, store):
        console.print(f"computed again: {retracted}", markup=False)
    records = store.records(plan.steps)
    missing = [t for t in plan.trials if any(step not in records for step in plan.required_steps(t))]
    stopped = False
    started = time.monotonic()
    if missing:
        from sacpo.cluster import preflight, tuner

        console.print(f"{plan.space.name}: {len(plan.trials)} trials, {len(plan.steps)} steps; results in {home.uri}")
        try:
            with (
                status.Register(plan, store, sweep),
                logged(folder / "sweep.log"),
                tuner.cluster(address),
                Progress(
                    *(plan, store, sweep, lambda: tuner.resolved(sweep["run"])),
                    *(lambda found: _keep(found, home), console),
                ),
            ):
                versions = {name: sweep["versions"][name] for name in PACKAGES}
                for note in preflight.check(plan, store, versions, records.keys()):
                    sweep["notes"].append(note)
                    console.print(f"note: {note}", markup=False)
                given_up = tuner.run_trials(
                    plan,
                    store,
                    sweep["run"],
                    folder / ".tune",
                    max_workers=max_workers,
                    left=[trial.trial_id for trial in missing],
                )
            for step, why in given_up.items():
                console.print(f"GIVEN UP {plan.steps[step].label}: {why}", markup=False)
        except KeyboardInterrupt:
            stopped = True
    found = tables.complete(plan, store, sweep)
    _count(found, sweep, time.monotonic() - started)
    _keep(found, home)
    write_report(found, folder)
    home.publish()
    _summarise(found, home, console, stopped)
    return 0 if (found.trials["status"] == "done").all() else 1


def _verify_leaves(plan: Plan, store: Store) -> list[str]:
    """Check the stored outputs that tables are made of, and take back judge_steps with verdicts missing.

    What is damaged or missing will be computed again; verdicts that were decided are in the ledger and cost nothing.
    """
    again = []
    for step in dict.fromkeys(s for trial in plan.trials for s in trial.steps if s not in trial.policy.values()):
        record = store.record(step)
        if record is None:
            continue
        undecided = record["metrics"].get("undecided", 0) if plan.steps[step].kind == "judge" else 0
        try:
            store.output(step, record)
        except CorruptOutput as error:
            again.append(f"{plan.steps[step].label}: {error}")
        else:
            if undecided and plan.steps[step].payload["judge"]["kind"] == "llm":
                why = f"{undecided} verdicts are missing"
                store.retract(step, why)
                again.append(f"{plan.steps[step].label}: {why}")
    return again


def _keep(found: Any, home: ResultsLocation) -> None:
    from sacpo.results.tables import write

    write(found, home.folder)
    home.publish()


def _facts(plan: Plan, store: Store, home: ResultsLocation, argv: list[str]) -> dict[str, Any]:
    space = plan.space.model_dump(mode="json")
    return {
        "run": uuid.uuid4().hex,
        "space": space,
        "space_id": content_id("space", space),
        "store": store.uri,
        "results": home.uri,
        "command": argv,
        "versions": {name: version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
        "git_commit": commit(),
        "started": time.time(),
        "notes": list(plan.notes),
        "canaries": "run" if plan.canaries else "skipped",
    }


def _count(found: Any, sweep: dict[str, Any], seconds: float) -> None:
    steps, trials = found.steps, found.trials
    done = steps["status"] == "done"
    sweep["ended"] = time.time()
    sweep["seconds"] = seconds
    sweep["counts"] = {
        "trials": len(trials),
        "trials_done": int((trials["status"] == "done").sum()),
        "trials_failed": int((trials["status"] == "failed").sum()),
        "steps_planned": len(steps),
        "steps_run": int((done & ~steps["reused"]).sum()),
        "steps_reused": int((done & steps["reused"]).sum()),
        "steps_failed": int((steps["status"] == "failed").sum()),
    }


def _summarise(found: Any, home: ResultsLocation, console: Any, stopped: bool) -> None:
    from sacpo.reporting.live import trial_table

    counts = found.sweep["counts"]
    console.print(trial_table(found.trials))
    console.print("* on the front; win rates against the SFT policy with 95 % intervals", markup=False)
    for reason, trials in found.trials[found.trials["status"] == "failed"].groupby("error", sort=False):
        console.print(f"FAILED {', '.join(trials['label'])}: {reason}", markup=False)
    console.print(
        f"{counts['trials_done']} of {counts['trials']} trials done; {counts['steps_run']} steps run, "
        f"{counts['steps_reused']} reused, {counts['steps_failed']} failed; {found.sweep['seconds']:.0f} s",
        markup=False,
    )
    for name in ("report.html", "pareto.png", "trials.csv"):
        console.print(f"  {os.path.relpath(home.folder / name)}", markup=False)
    if home.uri != str(home.folder):
        console.print(f"  and in {home.uri}", markup=False)
    if stopped:
        console.print("stopped; the same command goes on from here", markup=False)


if __name__ == "__main__":
    sys.exit(main())
