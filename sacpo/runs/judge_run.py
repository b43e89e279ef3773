"""Judges the stored answers of a sweep by a further judge, in the calling process.

No policy is loaded and nothing is generated. The judge joins the panel of the kept plan; its verdicts, the front by
this judge and its agreement with the other judges are added to the tables.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from rich.console import Console

from sacpo.errors import SacpoError, SpaceError, StepError
from sacpo.execution.in_process import carry_out_logged
from sacpo.execution.job import Job
from sacpo.execution.runner import Runner
from sacpo.planning.evaluation_steps import add_judge
from sacpo.planning.judge_payloads import JudgePayload
from sacpo.planning.metrics import JudgeMetrics
from sacpo.planning.plan import Plan
from sacpo.planning.records import StepResult
from sacpo.reporting.live import trial_table
from sacpo.reporting.write import write_report
from sacpo.results.collect import complete
from sacpo.results.comparisons import compare
from sacpo.results.kept_plan import read_kept_plan
from sacpo.results.load import Results, load_folder
from sacpo.results.sweep_facts import RunFacts, SweepFacts, read_facts
from sacpo.results.write import MissingStepsError, write_results
from sacpo.runs.import_verdicts import matched
from sacpo.runs.judge_warnings import judge_warnings
from sacpo.runs.report_run import open_store
from sacpo.spaces.evaluation import AnnotationsJudge, JudgeSettings
from sacpo.spaces.loading import parse_space
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import Store
from sacpo.store.sweep_registry import Registration

_SHOWN = 5  # missing steps that a message names


@dataclass(frozen=True)
class AddedJudge:
    """A judge that joins a panel.

    Attributes:
        name: Its name in the panel.
        settings: Its settings.
        source: The file of the settings, for errors.
        criteria: The criteria that it judges; None for all criteria of the space.
        trial_ids: The trials that it judges; None for all.
    """

    name: str
    settings: JudgeSettings
    source: str
    criteria: Sequence[str] | None = None
    trial_ids: Collection[str] | None = None


def judge_again(location: ResultsLocation, judge: AddedJudge, command: Sequence[str], canaries: bool = True) -> int:
    """Judge the stored answers of a sweep, and write the tables and the report again.

    Args:
        location: The results folder.
        judge: The judge.
        command: The command line, for the facts.
        canaries: Whether the judge is tried on canned pairs first.

    Returns:
        0 if all answers were judged. 1 if a step failed, and then the results folder is as it was; or if too few
        verdicts of a trial were decided, and then the tables say so.

    Raises:
        SacpoError: it is not a results folder, or it has no such criterion.
        SpaceError: the judge's settings do not fit the space.
        StoreError: the store cannot be used, or the results folder cannot be written.
    """
    folder = location.fetch()
    facts, kept = read_facts(folder), read_kept_plan(folder)
    results = load_folder(folder)
    if isinstance(judge.settings, AnnotationsJudge):
        criteria, trial_ids = matched(judge.settings, judge.criteria, results, kept.baseline.trial_id)
        judge = replace(judge, criteria=criteria, trial_ids=trial_ids)
    plan, checks = _extended_plan(kept, judge, canaries)
    store = open_store(location, facts)
    run = RunFacts.start(command, "in-process")
    trials = results.trials
    done_trials = set(trials.loc[trials["status"] == "done", "trial_id"])
    _retract_undecided(plan, store, judge)
    with Registration(plan, store, location, run.run, command, run.started_at):
        problems = _carry_out(plan, store, run.run, judge, checks, done_trials)
    if problems:
        for problem in problems:
            print(f"FAILED {problem}")
        print("the results folder is as it was; decided verdicts are kept, and the same command continues from here")
        return 1
    facts = facts.with_run(run)
    results = complete(plan, store, facts)
    results = replace(results, sweep=_with_ended(results.sweep, run.run))
    try:
        write_results(results, plan, folder)
    except MissingStepsError as error:
        print(error, file=sys.stderr)
        results = _write_verdicts(location, plan, results, judge.name)
    write_report(results, folder)
    location.publish()
    _print_results(results, judge.name)
    return 1 if _print_shortages(results, judge.name) else 0


def _extended_plan(kept: Plan, judge: AddedJudge, canaries: bool) -> tuple[Plan, tuple[str, ...]]:
    """The kept plan with the judge's steps, and those of them that try the judge on canned pairs."""
    criteria = list(kept.criteria)
    if unknown := sorted(set(judge.criteria or []) - set(criteria)):
        raise SacpoError(f"--criterion {', '.join(unknown)}: this sweep has {', '.join(criteria)}")
    criteria = list(judge.criteria or criteria)
    _check_settings(kept, judge, criteria)
    plan, checks = add_judge(kept, judge.name, dict.fromkeys(criteria, judge.settings), judge.trial_ids)
    if canaries:
        return plan, checks
    steps = {step_id: step for step_id, step in plan.steps.items() if step_id in kept.steps or step_id not in checks}
    return plan.model_copy(update={"steps": steps}), ()


def _check_settings(kept: Plan, judge: AddedJudge, criteria: Sequence[str]) -> None:
    """Check the judge as a member of the space's panels; problems of other settings are not the judge's."""
    space = kept.space.model_dump(mode="json")
    settings = [f"evaluation.{criterion}.panel.{judge.name}" for criterion in criteria]
    for criterion in kept.criteria:
        if judge.name in space["evaluation"][criterion]["panel"]:
            raise SacpoError(
                f"--name {judge.name}: the space has a judge of this name in evaluation.{criterion}.panel; give "
                "another --name"
            )
    for criterion in criteria:
        space["evaluation"][criterion]["panel"][judge.name] = judge.settings.model_dump(mode="json")
    try:
        parse_space(space)
    except SpaceError as error:
        problems = [problem for problem in error.problems if problem.startswith(tuple(settings))]
        if problems:
            raise SpaceError(judge.source, problems) from None


def _retract_undecided(plan: Plan, store: Store, judge: AddedJudge) -> None:
    """Retract the judge's steps of which verdicts are missing, so that these are asked for; the others are stored."""
    if not judge.settings.calls_endpoint:
        return
    steps = dict.fromkeys(step for trial in plan.trials for step in trial.panel.get(judge.name, {}).values())
    for step_id, record in store.records(steps).items():
        if isinstance(record.metrics, JudgeMetrics) and record.metrics.undecided:
            reason = f"{record.metrics.undecided} verdicts are missing"
            store.retract(step_id, reason)
            print(f"judged again: {plan.steps[step_id].label}: {reason}")


def _carry_out(
    plan: Plan, store: Store, run: str, judge: AddedJudge, checks: Sequence[str], done_trials: Collection[str]
) -> list[str]:
    """Carry out the judge's steps, those on canned pairs first; returns the reasons of failures.

    A trial that is not done and has no answers is left out.
    """
    steps: dict[str, None] = {}
    missing: dict[str, None] = {}
    done = store.records(plan.steps)
    for trial in plan.trials:
        own = [step for step in trial.panel.get(judge.name, {}).values() if step not in done]
        inputs = [parent for step in own for parent in plan.steps[step].parents.values() if parent not in done]
        if not inputs:
            steps |= dict.fromkeys(own)
        elif trial.trial_id in done_trials:
            missing |= dict.fromkeys(plan.steps[step].label for step in inputs)
    if missing:
        labels = ", ".join([*list(missing)[:_SHOWN], *["..."] * (len(missing) > _SHOWN)])
        return [f"the store {store.uri} lacks {len(missing)} steps ({labels}); run the sweep's own command again first"]
    runner = Runner(plan, store, run, _execute)
    labels_of: dict[str, list[str]] = {}  # reason of a failure to the labels of the steps
    for step in [*checks, *steps]:
        try:
            runner.ensure(step)
        except StepError as error:
            label = plan.steps[step].label
            reason = str(error).removeprefix(f"{label}: ")
            is_repeated = reason in labels_of
            labels_of.setdefault(reason, []).append(label)
            if step in checks or (is_repeated and judge.settings.calls_endpoint):
                break  # the endpoint would refuse the other steps too
    return [
        f"{labels[0]}{f' and {len(labels) - 1} more' if len(labels) > 1 else ''}: {reason}"
        for reason, labels in labels_of.items()
    ]


def _execute(job: Job[Any]) -> StepResult:
    """The executor: it carries out judge steps only, also if an answer turns out to be damaged."""
    if not isinstance(job.payload, JudgePayload):
        raise StepError("is not in the store; run the sweep first, since this command only judges")
    return carry_out_logged(job)


def _with_ended(facts: SweepFacts, run_id: str) -> SweepFacts:
    """The facts with the run ended; without it if all verdicts were in the store already."""
    run = next(run for run in facts.runs if run.run == run_id)
    return facts.with_run(run.ended()) if run.steps_run else facts.without_run(run_id)


def _write_verdicts(location: ResultsLocation, plan: Plan, results: Results, name: str) -> Results:
    """Add the judge's verdicts to the existing tables, whose other steps the store does not have.

    The kept plan has the judge afterwards, and the facts have the run.
    """
    folder = location.folder
    existing = load_folder(folder)
    is_new = results.verdicts["panel"] == name
    verdicts = pd.concat([existing.verdicts[existing.verdicts["panel"] != name], results.verdicts[is_new]])
    verdicts = verdicts.assign(refused=verdicts["refused"].eq(True))  # older tables have no such column
    steps = pd.concat([existing.steps, results.steps[~results.steps["step_id"].isin(existing.steps["step_id"])]])
    comparisons = compare(plan, existing.trials, existing.responses, verdicts)
    judges = results.comparisons["judges"]
    if "judges" in existing.comparisons:
        before = existing.comparisons["judges"]
        judges = pd.concat([before[before["panel"] != name], judges[judges["panel"] == name]], ignore_index=True)
    written = replace(
        existing,
        sweep=results.sweep.model_copy(update={"counts": existing.sweep.counts}),
        verdicts=verdicts.reset_index(drop=True),
        steps=steps.reset_index(drop=True),
        comparisons=existing.comparisons | comparisons | {"judges": judges},
    )
    write_results(written, plan, folder)
    return written


def _print_shortages(results: Results, name: str) -> bool:
    """Print the trials of which this judge decided too few verdicts; returns whether there are any."""
    panel = results.comparisons["panel"]
    if not len(panel):
        return False
    failed = panel[panel["panel"].eq(name) & panel["status"].eq("failed")]
    for error, rows in failed.groupby("error", sort=False):
        print(f"FAILED {', '.join(rows['label'])}: {error}")
    return len(failed) > 0


def _print_results(results: Results, name: str) -> None:
    panel = results.comparisons["panel"]
    console = Console(width=None if sys.stdout.isatty() else 160)
    if len(panel):
        console.print(trial_table(panel[panel["panel"] == name].assign(kl_to_sft=float("nan"))))
    for row in results.comparisons["agreement"].to_dict("records"):
        if name in (row["judge"], row["other_judge"]):
            console.print(
                f"{row['criterion']}: {row['judge']} and {row['other_judge']} agree on {row['raw']:.1%} of {row['n']} "
                f"answers (Cohen's kappa {row['kappa']:.2f})",
                markup=False,
            )
    for warning in judge_warnings(results, name):
        console.print(f"WARNING {warning}", markup=False)
