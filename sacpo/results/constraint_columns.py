"""Whether a trial satisfies the space's constraints: one column for each, and one for all together.

Verdicts that are missing count at their worst: as lost where the constraint is to be satisfied, and as won where it is
to be violated; a missing score as the lowest, or the highest, that any answer got.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sacpo.results.scores import with_scores
from sacpo.results.win_rates import scored
from sacpo.spaces.constraints import Constraint
from sacpo.statistics.certificate import is_above, lower_bounds
from sacpo.statistics.mean_bounds import mean_lower_bounds

SATISFIED, VIOLATED, UNDECIDED = "satisfied", "violated", "undecided"


def worst_case_means(verdicts: pd.DataFrame, missing: float, ties_lost: bool = False) -> pd.DataFrame:
    """Mean score of each prompt (rows, in the order of their ids) in each trial (columns).

    Args:
        verdicts: One judge's verdicts on one criterion.
        missing: Score of undecided verdicts, and of prompts without a verdict in a trial that has some: 0 or 1.
        ties_lost: Whether ties count as lost instead of half.
    """
    full = verdicts.assign(score=missing)
    decided = scored(verdicts)
    full.loc[decided.index, "score"] = decided["score"]
    if ties_lost:
        full.loc[full["outcome"] == "tie", "score"] = 0.0
    means = full.pivot_table(index="prompt_id", columns="trial_id", values="score", aggfunc="mean", observed=True)
    return means.fillna(missing)


def constraint_columns(constraints: Sequence[Constraint], verdicts: pd.DataFrame, is_baseline: bool) -> dict[str, str]:
    """`C_constraint` for each constrained criterion, and `constraint`: violated if one is, satisfied if all are.

    The answer is for this trial by itself, from all its prompts. A choice among several trials needs a certificate.

    Args:
        constraints: The constraints of the space.
        verdicts: The trial's verdicts by the criteria's own judges.
        is_baseline: The trial is the SFT policy, whose win rate is 0.5 by definition.
    """
    states = {c.criterion: _state(c, verdicts[verdicts["criterion"] == c.criterion], is_baseline) for c in constraints}
    overall = next((state for state in (VIOLATED, UNDECIDED, SATISFIED) if state in states.values()), "")
    return {f"{criterion}_constraint": state for criterion, state in states.items()} | {"constraint": overall}


def measured_lower_bounds(
    constraint: Constraint, verdicts: pd.DataFrame, trials: Sequence[object] | None = None
) -> NDArray[np.float64]:
    """Lower bound of each trial's win rate or mean score, with missing verdicts at their worst.

    Args:
        constraint: What is measured, and the confidence.
        verdicts: Verdicts of the constraint's key (`sacpo.results.scores.with_scores`).
        trials: The trials, in order; None for those that have verdicts.
    """
    is_rate = constraint.measure == "win_rate"
    worst = 0.0 if is_rate else worst_score(verdicts)
    means = worst_case_means(verdicts, worst)
    if trials is not None:
        means = means.reindex(columns=list(trials), fill_value=worst)
    matrix = means.to_numpy(dtype=float)
    return lower_bounds(matrix, constraint.confidence) if is_rate else mean_lower_bounds(matrix, constraint.confidence)


def worst_score(verdicts: pd.DataFrame, is_highest: bool = False) -> float:
    """The lowest (or highest) score of any answer, which stands for a missing one; 0 without any."""
    scores = scored(verdicts)["score"]
    return 0.0 if scores.empty else float(scores.max() if is_highest else scores.min())


def _state(constraint: Constraint, verdicts: pd.DataFrame, is_baseline: bool) -> str:
    if constraint.measure == "mean_score":
        return _score_state(constraint, verdicts)
    if is_baseline:
        return SATISFIED if constraint.at_least <= 0.5 else VIOLATED
    if verdicts.empty:
        return UNDECIDED
    low, high = (worst_case_means(verdicts, missing).to_numpy(dtype=float) for missing in (0.0, 1.0))
    if is_above(low, [constraint.at_least], constraint.confidence).all():
        return SATISFIED
    is_below = is_above(1 - high, [1 - constraint.at_least], constraint.confidence).all()
    return VIOLATED if is_below else UNDECIDED


def _score_state(constraint: Constraint, verdicts: pd.DataFrame) -> str:
    """The same for a mean score; the SFT policy's are in the verdicts of the A/A test."""
    scores = with_scores(verdicts, [constraint])
    scores = scores[scores["criterion"] == constraint.key]
    if scored(scores).empty:
        return UNDECIDED
    low = worst_case_means(scores, worst_score(scores)).to_numpy(dtype=float)
    high = worst_case_means(scores, worst_score(scores, is_highest=True)).to_numpy(dtype=float)
    if (mean_lower_bounds(low, constraint.confidence) >= constraint.at_least).all():
        return SATISFIED
    is_below = (-mean_lower_bounds(-high, constraint.confidence) < constraint.at_least).all()
    return VIOLATED if is_below else UNDECIDED
