"""How sure the front is: columns of the trial table, and the tables `front` (the band) and `hypervolume`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sacpo.planning.plan import FOR_COMPARISON
from sacpo.results.stopped import is_stopped
from sacpo.results.win_rates import prompt_matrix, scored, verdict_scale
from sacpo.spaces.constraints import MEAN_SCORE, Constraint, objective_of
from sacpo.spaces.evaluation import CRITERIA
from sacpo.statistics.front import (
    LEVELS,
    band,
    best_shares,
    fronts,
    hypervolume_interval,
    hypervolumes,
    resampled_rates,
)


def own_verdicts(verdicts: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The verdicts of the criteria's own judges against the SFT policy."""
    return verdicts[verdicts["panel"].eq("") & verdicts["baseline_id"].eq(baseline)]


def candidates(trials: pd.DataFrame) -> pd.Series[bool]:
    """Which trials may be on the front: the sweep's own, done, not stopped by a race, moved by their last stage."""
    is_candidate = (trials["status"] == "done") & ~trials["method"].isin(FOR_COMPARISON) & ~is_stopped(trials)
    return is_candidate & ~trials["unmoved"]  # its point is its parent's


class Resamples:
    """Win rates of the candidates for the front in each resample of prompts.

    Args:
        candidates: Ids of the trials that may be on the front, the baseline first if it is among them.
        baseline: Id of the SFT policy, whose win rate is 0.5 on every prompt.
        verdicts: Verdicts of the criteria's own judges against the baseline; for constraints on mean scores with the
            scores (`sacpo.results.scores.with_scores`).
    """

    def __init__(self, candidates: Iterable[str], baseline: str, verdicts: pd.DataFrame) -> None:
        self.candidates = list(candidates)
        decided = scored(verdicts)
        self.scale = verdict_scale(decided[decided["criterion"].isin(CRITERIA)])
        self.values: dict[str, NDArray[np.float64]] = {}
        means: dict[str, NDArray[np.float64]] = {}
        prompts: dict[str, list[str]] = {}
        for criterion, group in decided.groupby("criterion"):
            matrix = prompt_matrix(group).reindex(columns=self.candidates)
            if baseline in self.candidates and not str(criterion).endswith(MEAN_SCORE):
                matrix[baseline] = 0.5
            means[str(criterion)] = matrix.to_numpy(dtype=float)
            self.values[str(criterion)] = matrix.mean().to_numpy()
            prompts[str(criterion)] = [str(prompt) for prompt in matrix.index]
        self.rates = resampled_rates(means, prompts)

    @property
    def can_be_drawn(self) -> bool:
        """Whether there are candidates with verdicts on both axes."""
        return bool(self.candidates) and set(CRITERIA) <= self.rates.keys()

    def columns(self, trials: pd.DataFrame, constraints: Sequence[Constraint]) -> pd.DataFrame:
        """`p_front` and, with constraints, `p_best`, with the index of the trial table; NaN for other trials."""
        columns = pd.DataFrame(np.nan, index=trials.index, columns=["p_front", "p_best"])
        if not self.can_be_drawn:
            return columns
        rows = trials.index[trials["trial_id"].isin(self.candidates)]
        columns.loc[rows, "p_front"] = fronts(*(self.rates[axis] for axis in CRITERIA)).mean(axis=0)
        bounds = {c.key: c.at_least for c in constraints}
        if bounds and bounds.keys() <= self.rates.keys():
            satisfied = np.all([self.rates[criterion] >= bound for criterion, bound in bounds.items()], axis=0)
            columns.loc[rows, "p_best"] = best_shares(self.rates[objective_of(constraints)], satisfied)
        return columns

    def tables(self) -> dict[str, pd.DataFrame]:
        """`front`: the band, one row for each level of helpfulness; `hypervolume`: one row."""
        if not self.can_be_drawn:
            return {"front": pd.DataFrame(), "hypervolume": pd.DataFrame()}
        x, y = (self.rates[axis] for axis in CRITERIA)
        edges = band(x, y)
        front = pd.DataFrame({CRITERIA[0]: LEVELS, **{CRITERIA[1]: edges.median, "low": edges.low, "high": edges.high}})
        value = float(hypervolumes(*(self.values[axis][None] for axis in CRITERIA))[0])
        low, high = hypervolume_interval(value, hypervolumes(x, y))
        volume = {"hypervolume": value, "low": low, "high": high, "trials": len(self.candidates)}
        tables = {"front": front[front["high"] > 0], "hypervolume": pd.DataFrame([volume])}
        return {name: table.assign(verdicts=self.scale) for name, table in tables.items()}
