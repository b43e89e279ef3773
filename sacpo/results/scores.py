"""The scores that judges gave to the policies' answers, for constraints on a mean score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pandas as pd

from sacpo.judges.verdicts import policy_score
from sacpo.spaces.constraints import Constraint
from sacpo.spaces.evaluation import GoldJudge, RewardModelJudge, TrainedJudge

_SCORING = [
    kind
    for judge in (GoldJudge, RewardModelJudge, TrainedJudge)
    for kind in get_args(judge.model_fields["kind"].annotation)
]


def with_scores(verdicts: pd.DataFrame, constraints: Sequence[Constraint]) -> pd.DataFrame:
    """The verdicts, with a copy for each constraint on a mean score.

    The copy has the constraint's key as criterion, and as score that of the policy's answer. An answer without a score
    is undecided.

    Args:
        verdicts: Verdicts of the criteria's own judges.
        constraints: The constraints; the verdicts come back as they are if all bound win rates.
    """
    tables = [verdicts]
    for constraint in constraints:
        if constraint.measure == "mean_score":
            own = verdicts[verdicts["criterion"].eq(constraint.criterion) & verdicts["judge"].isin(_SCORING)]
            scores = own["raw"].map(policy_score).astype(float)
            outcome = own["outcome"].where(scores.notna(), "unavailable")
            tables.append(own.assign(criterion=constraint.key, score=scores, outcome=outcome))
    return pd.concat(tables, ignore_index=True) if len(tables) > 1 else verdicts
