"""Whether a trial satisfies the space's constraints: one column for each, and one for all together.

Verdicts that are missing count at their worst: as lost where the constraint is to be satisfied, and as won where it is
to be violated.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from sacpo.results.win_rates import scored
from sacpo.spaces.constraints import Constraint
from sacpo.statistics.certificate import is_above

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


def _state(constraint: Constraint, verdicts: pd.DataFrame, is_baseline: bool) -> str:
    if is_baseline:
        return SATISFIED if constraint.at_least <= 0.5 else VIOLATED
    if verdicts.empty:
        return UNDECIDED
    low, high = (worst_case_means(verdicts, missing).to_numpy(dtype=float) for missing in (0.0, 1.0))
    if is_above(low, [constraint.at_least], constraint.confidence).all():
        return SATISFIED
    is_below = is_above(1 - high, [1 - constraint.at_least], constraint.confidence).all()
    return VIOLATED if is_below else UNDECIDED
