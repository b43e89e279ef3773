"""Builds the tables of a sweep from its plan and the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import pandas as pd

from sacpo.execution.artifacts import RESPONSES, VERDICTS
from sacpo.judges.judge_directed import is_judge_directed
from sacpo.planning.judge_payloads import JudgePayload
from sacpo.planning.plan import Plan, Trial
from sacpo.planning.records import StepRecord
from sacpo.results.choice import choice_table
from sacpo.results.comparisons import compare
from sacpo.results.curves import curves_table
from sacpo.results.exact import exact_frontier
from sacpo.results.front import Resamples, candidates, own_verdicts
from sacpo.results.judges_table import judge_name, judge_revision, judges_table
from sacpo.results.load import Results
from sacpo.results.preview import preview_table
from sacpo.results.scores import with_scores
from sacpo.results.step_columns import step_row
from sacpo.results.stored_outputs import StoredOutputs
from sacpo.results.sweep_facts import Counts, SweepFacts
from sacpo.results.trial_columns import Evaluations, trial_row
from sacpo.results.win_rates import estimate_columns, scored, verdict_scores
from sacpo.spaces.evaluation import CRITERIA
from sacpo.statistics.pareto import on_front
from sacpo.store.step_store import Store

_RESPONSE_COLUMNS = [
    "criterion",
    "prompt_id",
    "category",
    "prompt",
    "sample",
    "response",
    "tokens",
    "finished",
    "missing",
]
_VERDICT_COLUMNS = [
    "baseline_id",
    "criterion",
    "prompt_id",
    "category",
    "sample",
    "order",
    "repeat",
    "outcome",
    "raw",
    "p_win",
    "judge",
    "judge_revision",
    "panel",
    "latency",
    "attempts",
    "prompt_tokens",
    "completion_tokens",
    "refused",
    "score",
    "no_verdict_mass",
    "verdicts",
]


def collect(
    plan: Plan,
    store: Store,
    facts: SweepFacts,
    records: Mapping[str, StepRecord] | None = None,
    failures_of: Collection[str] | None = None,
) -> Results:
    """The tables of a sweep that may still run: trials and steps that are not done are pending.

    Args:
        plan: The plan.
        store: The store.
        facts: The facts of the sweep, which come back with new counts.
        records: The records of the done steps, if they were read before.
        failures_of: Runs whose failures count; None for all runs of the results folder.
    """
    outputs = _outputs(plan, store, facts, records, failures_of)
    return _collect(outputs, facts)


def complete(plan: Plan, store: Store, facts: SweepFacts) -> Results:
    """The tables of a sweep that has ended, with the comparisons over all trials."""
    outputs = _outputs(plan, store, facts, None, None)
    results = _collect(outputs, facts)
    comparisons = compare(plan, results.trials, results.responses, results.verdicts)
    own = own_verdicts(results.verdicts, plan.baseline.trial_id)
    on_axes = results.trials.loc[candidates(results.trials), "trial_id"]
    further = {
        "judges": judges_table(plan, outputs),
        "curves": curves_table(outputs),
        "preview": preview_table(outputs, own),
        "choice": choice_table(results.trials, own, plan.space.constraint),
        **Resamples(on_axes, plan.baseline.trial_id, own).tables(),
    }
    return replace(results, comparisons=comparisons | further)


def _outputs(
    plan: Plan,
    store: Store,
    facts: SweepFacts,
    records: Mapping[str, StepRecord] | None,
    failures_of: Collection[str] | None,
) -> StoredOutputs:
    records = store.records(plan.steps) if records is None else records
    return StoredOutputs(plan, store, records, facts.run_ids if failures_of is None else failures_of)


def _collect(outputs: StoredOutputs, facts: SweepFacts) -> Results:
    plan = outputs.plan
    responses = pd.concat([_responses(trial, outputs) for trial in plan.trials], ignore_index=True)
    verdicts = pd.concat([_verdicts(trial, outputs) for trial in plan.trials], ignore_index=True)
    own = own_verdicts(verdicts, plan.baseline.trial_id)
    estimates = {c: estimate_columns(scored(own[own["criterion"] == c])) for c in plan.criteria}
    evaluations = Evaluations(responses, own, estimates)
    trials = pd.DataFrame([trial_row(trial, outputs, evaluations) for trial in plan.trials])
    is_candidate = candidates(trials)
    trials["on_front"] = on_front(trials[list(CRITERIA)].where(is_candidate).to_numpy(dtype=float))
    measured = with_scores(own, plan.space.constraint)
    certainty = Resamples(trials.loc[is_candidate, "trial_id"], plan.baseline.trial_id, measured)
    trials = trials.join(certainty.columns(trials, plan.space.constraint))
    steps = pd.DataFrame([step_row(step_id, outputs, facts.run_ids) for step_id in plan.steps])
    return Results(
        _counted(facts, trials, steps, outputs), trials, steps, responses, verdicts, exact_frontier(plan, outputs)
    )


def _counted(facts: SweepFacts, trials: pd.DataFrame, steps: pd.DataFrame, outputs: StoredOutputs) -> SweepFacts:
    """The facts with the numbers of these tables. Runs that ended keep theirs."""
    done, reused = steps["status"] == "done", steps["reused"].astype(bool)
    counts = Counts(
        trials=len(trials),
        trials_done=int((trials["status"] == "done").sum()),
        trials_failed=int((trials["status"] == "failed").sum()),
        steps_planned=len(steps),
        steps_run=int((done & ~reused).sum()),
        steps_reused=int((done & reused).sum()),
        steps_failed=int((steps["status"] == "failed").sum()),
    )
    records = [record for step_id in outputs.plan.steps if (record := outputs.record(step_id)) is not None]
    runs = tuple(
        run
        if run.ended_at is not None
        else run.model_copy(update={"steps_run": sum(r.run == run.run for r in records)})
        for run in facts.runs
    )
    return facts.model_copy(update={"counts": counts, "runs": runs})


def _responses(trial: Trial, outputs: StoredOutputs) -> pd.DataFrame:
    parts = [outputs.table(step, RESPONSES).assign(criterion=criterion) for criterion, step in trial.generate.items()]
    table = _with_trial(pd.concat(parts, ignore_index=True), trial, _RESPONSE_COLUMNS)
    directed = [is_judge_directed(text) for text in table["response"].fillna("")]
    return table.assign(missing=table["missing"].astype(object).fillna(""), judge_directed=directed)


def _verdicts(trial: Trial, outputs: StoredOutputs) -> pd.DataFrame:
    parts = []
    for name, criterion, step_id in trial.judge_steps():
        payload = outputs.plan.steps[step_id].payload
        assert isinstance(payload, JudgePayload), "a trial's verdicts come from judge steps"
        is_rival = name in trial.head_to_head
        parts.append(
            outputs.table(step_id, VERDICTS).assign(
                criterion=criterion,
                baseline_id=name if is_rival else outputs.plan.baseline.trial_id,
                panel="" if is_rival else name,
                judge=judge_name(payload.judge),
                judge_revision=judge_revision(payload.judge),
                verdicts=payload.judge.verdicts,
            )
        )
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    table = _with_trial(table, trial, _VERDICT_COLUMNS)
    # Steps of older versions have none of these columns.
    return table.assign(
        refused=table["refused"].eq(True),
        score=verdict_scores(table),
        no_verdict_mass=table["no_verdict_mass"].astype(float),
    )


def _with_trial(table: pd.DataFrame, trial: Trial, columns: list[str]) -> pd.DataFrame:
    """The table with these columns, after the trial's id."""
    return table.reindex(columns=columns).assign(trial_id=trial.trial_id)[["trial_id", *columns]]
