"""One trial's row of the trial table. Every number comes from a record or an output in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sacpo.execution.artifacts import RESPONSES
from sacpo.planning.metrics import GenerateMetrics, TrainMetrics
from sacpo.planning.plan import Plan, Trial
from sacpo.results.constraint_columns import constraint_columns
from sacpo.results.coverage import coverage_problem
from sacpo.results.exact import exact_columns
from sacpo.results.stopped import stopped_reason
from sacpo.results.stored_outputs import StoredOutputs
from sacpo.results.warning_columns import warning_columns
from sacpo.results.win_rates import baseline_columns, criterion_columns, no_rate
from sacpo.statistics.win_rate import Estimate

NAN = float("nan")


@dataclass(frozen=True)
class Evaluations:
    """Answers and verdicts of all trials.

    Attributes:
        responses: The answers.
        verdicts: The verdicts of the criteria's own judges against the baseline.
        estimates: Criterion to trial id to the win rate; trials without a decided verdict have none.
    """

    responses: pd.DataFrame
    verdicts: pd.DataFrame
    estimates: Mapping[str, Mapping[Any, Estimate]]


def trial_row(trial: Trial, outputs: StoredOutputs, evaluations: Evaluations) -> dict[str, Any]:
    """The trial's row, without `on_front`, which depends on all trials."""
    plan = outputs.plan
    criteria = {criterion: _criterion(trial, criterion, outputs, evaluations) for criterion in plan.criteria}
    status, error = _status(trial, outputs)
    if status == "done" and (problem := _coverage_problem(trial, plan, evaluations)):
        status, error = "failed", problem
    if status == "failed":  # a failure is never a number
        criteria = {criterion: columns | no_rate(criterion) for criterion, columns in criteria.items()}
    tokens = evaluations.responses.loc[evaluations.responses["trial_id"] == trial.trial_id, "tokens"]
    return {
        **_settings(trial),
        "status": status,
        "error": error,
        **{name: value for columns in criteria.values() for name, value in columns.items()},
        **_constraints(trial, plan, status, evaluations),
        "stopped": stopped_reason(trial, outputs),
        "mean_response_tokens": float(tokens.mean()) if len(tokens) else NAN,
        **warning_columns(trial, outputs, evaluations.responses),
        "kl_to_sft": _estimated_kl(trial, outputs),
        **exact_columns(trial, outputs),  # its exact KL replaces the estimate
        **_durations(trial, outputs),
    }


def _settings(trial: Trial) -> dict[str, Any]:
    beta, ratio = trial.beta, trial.beta_over_lambda
    return {
        "trial_id": trial.trial_id,
        "label": trial.label,
        "method": trial.method,
        "chain": trial.chain,
        "beta": NAN if beta is None else beta,
        "beta_over_lambda": NAN if ratio is None else ratio,
        "lambda": NAN if beta is None or ratio is None else beta / ratio,
        "kl_parameters": json.dumps(trial.kl_parameters),
        "q": NAN if trial.q is None else trial.q,
        "combination": trial.combination.text if trial.is_merge else "",
        "seed": pd.NA if trial.seed is None else trial.seed,
    }


def _criterion(trial: Trial, criterion: str, outputs: StoredOutputs, evaluations: Evaluations) -> dict[str, Any]:
    """The trial's columns of one criterion."""
    if trial is outputs.plan.baseline:
        return baseline_columns(criterion, len(outputs.table(trial.generate[criterion], RESPONSES)))
    verdicts = evaluations.verdicts
    is_own = (verdicts["trial_id"] == trial.trial_id) & (verdicts["criterion"] == criterion)
    estimate = evaluations.estimates[criterion].get(trial.trial_id)
    return criterion_columns(criterion, verdicts[is_own], estimate) | _judge_accuracy(trial, criterion, outputs)


def _constraints(trial: Trial, plan: Plan, status: str, evaluations: Evaluations) -> dict[str, str]:
    """Whether the trial satisfies the space's constraints; empty texts if it is not done."""
    verdicts = evaluations.verdicts[evaluations.verdicts["trial_id"] == trial.trial_id]
    columns = constraint_columns(plan.space.constraint, verdicts, trial is plan.baseline)
    return columns if status == "done" else dict.fromkeys(columns, "")


def _judge_accuracy(trial: Trial, criterion: str, outputs: StoredOutputs) -> dict[str, float | None]:
    """Held-out accuracy of a judge that the sweep trained, its interval and its pairs; empty for other judges."""
    model = outputs.plan.steps[trial.judge[criterion]].parents.get("model")
    record = outputs.record(model) if model is not None else None
    if record is None or not isinstance(record.metrics, TrainMetrics) or record.metrics.judge is None:
        return {}
    judge = record.metrics.judge
    return {
        f"{criterion}_judge_accuracy": judge.held_out_accuracy,
        f"{criterion}_judge_accuracy_low": judge.low,
        f"{criterion}_judge_accuracy_high": judge.high,
        f"{criterion}_judge_pairs": judge.held_out_pairs,
    }


def _all_steps(trial: Trial, plan: Plan) -> list[str]:
    """Every step that the row depends on, shared steps included."""
    return list(dict.fromkeys(s for required in plan.required_steps(trial) for s in plan.ancestors(required)))


def _status(trial: Trial, outputs: StoredOutputs) -> tuple[str, str]:
    """`done`, `failed` or `pending`, and the reason of a failure."""
    if all(outputs.record(step_id) is not None for step_id in trial.steps):
        return "done", ""
    for step_id in _all_steps(trial, outputs.plan):
        failure = outputs.attempts(step_id)[1] if outputs.record(step_id) is None else None
        if failure is not None:
            log = f" (log: {outputs.store.location(failure.log)})" if failure.log else ""
            return "failed", f"{outputs.plan.steps[step_id].label}: {failure.error}{log}"
    return "pending", ""


def _coverage_problem(trial: Trial, plan: Plan, evaluations: Evaluations) -> str:
    """The reason why a trial fails of which too few verdicts were decided; empty if there are enough."""
    verdicts = evaluations.verdicts[evaluations.verdicts["trial_id"] == trial.trial_id]
    smallest = plan.space.evaluation.min_coverage
    problems = (coverage_problem(c, verdicts[verdicts["criterion"] == c], smallest) for c in plan.criteria)
    return next(filter(None, problems), "")


def _estimated_kl(trial: Trial, outputs: StoredOutputs) -> float:
    """KL to the SFT policy in nats, estimated on the trial's own answers; NaN if they are not plain samples."""
    if trial is outputs.plan.baseline:
        return 0.0
    metrics = [record.metrics for step in trial.generate.values() if (record := outputs.record(step)) is not None]
    estimates = [m.kl_to_sft for m in metrics if isinstance(m, GenerateMetrics) and m.kl_to_sft is not None]
    return float(np.mean(estimates)) if estimates else NAN


def _durations(trial: Trial, outputs: StoredOutputs) -> dict[str, float]:
    records = [record for step in _all_steps(trial, outputs.plan) if (record := outputs.record(step)) is not None]
    return {
        "seconds": sum(record.seconds for record in records),
        "device_seconds": sum(record.device_seconds for record in records),
    }
