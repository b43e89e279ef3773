"""`python -m sacpo.judge RESULTS --judge FILE`: another judge's word on the answers that a sweep has stored.

No policy is loaded and nothing is generated. The judge joins the panel of the results folder: its verdicts, the front
under it and its agreement with the others stand beside what was there.
"""

from __future__ import annotations

import argparse
import copy
import sys
import uuid
from pathlib import Path
from typing import Any

from sacpo.errors import SacpoError, StepError
from sacpo.execution.in_process import in_process
from sacpo.execution.job import Job
from sacpo.execution.runner import Runner
from sacpo.planning.plan import Plan
from sacpo.spaces.loading import load_settings
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import Store


def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 all was judged, 1 some judge_steps failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="python -m sacpo.judge", description=__doc__)
    parser.add_argument("results", help="a results folder, a path or an s3:// URI")
    parser.add_argument(
        "--judge", type=Path, required=True, help="YAML file with the judge's settings (kind: llm, ...)"
    )
    parser.add_argument("--name", help="its name in the panel (default: the file's name)")
    parser.add_argument("--criterion", action="append", help="judge this criterion only; may be given again")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the judge")
    parser.add_argument("--skip-canaries", action="store_true", help="do not try the judge on canned pairs first")
    arguments = parser.parse_args(argv)
    try:
        home = ResultsLocation(arguments.results)
        status = judge_again(
            home.fetch(),
            load_settings(arguments.judge, arguments.set),
            arguments.name or arguments.judge.stem,
            arguments.criterion,
            canaries=not arguments.skip_canaries,
        )
        home.publish()
    except SacpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def judge_again(
    folder: Path, judge: dict[str, Any], name: str, criteria: list[str] | None = None, *, canaries: bool = True
) -> int:
    """Judge the stored answers of a sweep by another judge, in this process, and write the tables and the report again.

    Args:
        folder: A results folder.
        judge: The judge's settings, as under `evaluation.CRITERION.judge`.
        name: Its name in the panel.
        criteria: Which criteria; all that the space has when absent.
        canaries: Whether the judge is tried on canned pairs first.

    Returns:
        0 if every judging went well; else 1, with nothing written.

    Raises:
        SacpoError: there are no such results, criterion or answers, or the judge's settings are wrong.
    """
    from sacpo.report import write_report
    from sacpo.results import tables

    sweep = tables.read_sweep(folder)
    before = tables.stored_plan(sweep)
    known = list(before.prompts)
    if unknown := sorted(set(criteria or []) - set(known)):
        raise SacpoError(f"--criterion {', '.join(unknown)}: this sweep has {', '.join(known)}")
    again = copy.deepcopy(sweep.get("judged_again", {}))
    again[name] = dict.fromkeys(criteria or known, judge)
    sweep = sweep | {"judged_again": again, "run": uuid.uuid4().hex}
    plan = tables.stored_plan(sweep)
    failed = _carry_out(plan, Store(sweep["store"]), sweep["run"], name, canaries)
    if failed:
        for reason in failed:
            print(f"FAILED {reason}")
        print("the results folder is as it was; verdicts already got are kept, the same command goes on from here")
        return 1
    found = tables.complete(plan, Store(sweep["store"]), sweep)
    tables.write(found, folder)
    write_report(found, folder)
    _print(found, name)
    return 0


def _carry_out(plan: Plan, store: Store, run: str, name: str, canaries: bool) -> list[str]:
    """Judge by one member of the panel, canaries first; returns the reasons of what failed."""
    runner = Runner(plan, store, run, _execute)
    mine = {step for trial in plan.trials for step in trial.panel.get(name, {}).values()}
    asked = {plan.steps[step].payload["criterion"]: plan.steps[step].payload["judge"] for step in mine}
    checks = [s for s in plan.canaries if asked.get((p := plan.steps[s].payload)["criterion"]) == p["judge"]]
    failed: list[str] = []
    for step in [*(checks if canaries else []), *sorted(mine, key=list(plan.steps).index)]:
        try:
            runner.ensure(step)
        except StepError as error:
            failed.append(str(error))
            if step in checks:
                break
    return list(dict.fromkeys(failed))


def _execute(kind: str, job: Job) -> dict[str, Any]:
    if kind not in ("judge", "canary"):
        raise StepError(
            "it is not in the store; run the sweep first: judging again makes no policies, answers or judges"
        )
    return in_process(kind, job)


def _print(found: Any, name: str) -> None:
    from rich.console import Console

    from sacpo.reporting.live import trial_table

    panel = found.comparisons["panel"]
    console = Console(width=None if sys.stdout.isatty() else 160)
    if len(panel):
        console.print(trial_table(panel[panel["panel"] == name].assign(kl_to_sft=float("nan"), status="done")))
    for row in found.comparisons["agreement"].to_dict("records"):
        if name in (row["judge"], row["other_judge"]):
            console.print(
                f"{row['criterion']}: {row['judge']} and {row['other_judge']} agree on {row['raw']:.1%} of {row['n']} "
                f"answers (Cohen's kappa {row['kappa']:.2f})",
                markup=False,
            )


if __name__ == "__main__":
    sys.exit(main())
