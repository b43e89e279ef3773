"""Signs that a trial's numbers do not mean what they seem to mean: columns and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from sacpo.planning.metrics import TrainMetrics
from sacpo.planning.plan import Plan, Trial
from sacpo.results.stored_outputs import StoredOutputs

_UNMOVED = 0.95  # a policy that gives so large a share of its parent's answers has not moved
_FEW_FINISHED = 0.5
_MANY_DIRECTED = 0.01  # of all answers; a single one may be an ordinary answer about judges

_ANSWER = ["criterion", "prompt_id", "sample"]


def warning_columns(trial: Trial, outputs: StoredOutputs, responses: pd.DataFrame) -> dict[str, Any]:
    """The columns of a trial that say whether its numbers mean something, and `warnings`, which says it in words.

    Args:
        trial: The trial.
        outputs: Records of the steps.
        responses: The answers of all trials.
    """
    own = responses[responses["trial_id"] == trial.trial_id]
    finished = float(own["finished"].astype(float).mean()) if len(own) else float("nan")
    parent = parent_trial(trial, outputs.plan)
    identical = float("nan") if parent is None else _identical_answers(trial, parent, responses)
    warnings = list(_training_warnings(trial, outputs))
    if finished < _FEW_FINISHED:
        warnings.append(
            f"{1 - finished:.0%} of the answers ran into evaluation.generation.max_new_tokens; raise it, or check with "
            "--inspect that the model's end token is the one that training uses"
        )
    if identical >= _UNMOVED:
        warnings.append(
            f"{identical:.0%} of the answers are its parent policy's: the last stage hardly changed the policy; try a "
            "higher learning_rate, more examples or a lower KL parameter"
        )
    directed = own[own["judge_directed"].eq(True)]
    if len(directed) >= _MANY_DIRECTED * len(own) > 0:
        warnings.append(
            f"{len(directed)} of {len(own)} answers hold text that is directed at a judge: read them "
            "(judge_directed in responses.parquet) before you believe the win rates"
        )
    return {
        "finished_fraction": finished,
        "identical_to_parent": identical,
        "unmoved": parent is not None and (identical >= _UNMOVED or not _loss_moved(trial, outputs)),
        "judge_directed_answers": len(directed),
        "warnings": "; ".join(warnings),
    }


def parent_trial(trial: Trial, plan: Plan) -> Trial | None:
    """The trial of the policy that a chain's last stage started from; None for merges, sentinels and the baseline."""
    if trial is plan.baseline or set(trial.policy) != {"policy"}:
        return None
    parent = plan.steps[trial.policy["policy"]].parents.get("policy")
    return next((other for other in plan.trials if other.policy == {"policy": parent}), None)


def _identical_answers(trial: Trial, parent: Trial, responses: pd.DataFrame) -> float:
    """Share of a trial's answers that its parent policy gives too; NaN without answers of both."""
    own, theirs = (
        responses[responses["trial_id"] == t.trial_id].set_index(_ANSWER)["response"] for t in (trial, parent)
    )
    own, theirs = own.align(theirs, join="inner")
    return float((own == theirs).mean()) if len(own) else float("nan")


def _loss_moved(trial: Trial, outputs: StoredOutputs) -> bool:
    """Whether the loss of a chain's last stage moved; True if it is not trained."""
    record = outputs.record(trial.policy["policy"])
    return record is None or not isinstance(record.metrics, TrainMetrics) or record.metrics.loss_moved


def _training_warnings(trial: Trial, outputs: StoredOutputs) -> Iterator[str]:
    """Warnings of all trainings that the trial's policy rests on."""
    plan = outputs.plan
    for step_id in dict.fromkeys(s for end in trial.policy.values() for s in plan.ancestors(end)):
        record = outputs.record(step_id)
        if record is not None and isinstance(record.metrics, TrainMetrics):
            yield from (f"{record.label}: {warning}" for warning in record.metrics.warnings)
