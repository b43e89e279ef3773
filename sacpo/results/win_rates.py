"""From verdicts to what a trial's row says of each criterion: the win rate, its bounds, what may be wrong with it.

Verdicts that were not decided (unparsable, unavailable) are no scores. They show in the coverage, and in the win rate
that would be if all of them were lost or won.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sacpo.statistics.win_rate import Estimate, estimates, win_rate
from sacpo.judges.verdicts import DECIDED, order_inconsistency

_CALL = ["prompt_id", "sample", "repeat", "order", "outcome"]
_NOT_KNOWN = Estimate(float("nan"), float("nan"), float("nan"), 0)


def scored(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The decided verdicts, with a column `score`: 1 win, 0.5 tie, 0 loss."""
    return verdicts.assign(score=verdicts["outcome"].map(DECIDED).astype(float)).dropna(subset="score")


def prompt_matrix(decided: pd.DataFrame, columns: str = "trial_id") -> pd.DataFrame:
    """Mean score of each prompt (rows) in each trial (columns); not a number where no verdict was decided."""
    return decided.pivot_table(index="prompt_id", columns=columns, values="score", aggfunc="mean", observed=True)


def estimate_columns(decided: pd.DataFrame, columns: str = "trial_id") -> dict[Any, Estimate]:
    """The win rate of every trial that has a decided verdict, all from the same resamples of prompts."""
    matrix = prompt_matrix(decided, columns)
    return dict(zip(matrix.columns, estimates(matrix.to_numpy(dtype=float)), strict=True)) if len(matrix) else {}


def criterion_columns(criterion: str, verdicts: pd.DataFrame, estimate: Estimate | None) -> dict[str, Any]:
    """One trial's columns of one criterion.

    Args:
        criterion: Its name, with which the columns' names begin.
        verdicts: The judge's verdicts on this trial and criterion.
        estimate: Their win rate; none where none was decided.
    """
    decided = scored(verdicts)
    shown = estimate or _NOT_KNOWN
    low, high = _missing_bounds(verdicts)
    category, worst = _worst_category(decided)
    turned = order_inconsistency(
        ((prompt, sample, repeat), order, outcome)
        for prompt, sample, repeat, order, outcome in decided[_CALL].itertuples(index=False)
    )
    return {
        criterion: shown.value,
        f"{criterion}_low": shown.low,
        f"{criterion}_high": shown.high,
        f"n_{criterion}": len(decided),
        f"{criterion}_coverage": len(decided) / len(verdicts) if len(verdicts) else float("nan"),
        f"{criterion}_if_missing_lost": low,
        f"{criterion}_if_missing_won": high,
        f"{criterion}_order_inconsistency": float("nan") if turned is None else turned,
        f"{criterion}_worst_category": category,
        f"{criterion}_worst_category_rate": worst,
    }


def baseline_columns(criterion: str, answers: int) -> dict[str, Any]:
    """The baseline's columns: 0.5 by definition."""
    names = (criterion, f"{criterion}_low", f"{criterion}_high", f"n_{criterion}")
    return dict(zip(names, (0.5, 0.5, 0.5, answers), strict=True))


def categories(decided: pd.DataFrame) -> pd.DataFrame:
    """One row a trial, criterion and category of prompts: win rate, 95 % bounds, prompts. Empty without categories."""
    rows = []
    for keys, group in decided[decided["category"].fillna("") != ""].groupby(["trial_id", "criterion", "category"]):
        found = win_rate(group["score"].to_numpy(), group["prompt_id"].to_numpy())
        rows.append((*keys, found.value, found.low, found.high, found.n_prompts))
    names = ["trial_id", "criterion", "category", "win_rate", "low", "high", "n_prompts"]
    return pd.DataFrame(rows, columns=names)


def _missing_bounds(verdicts: pd.DataFrame) -> tuple[float, float]:
    """The win rate if every verdict that is missing were lost, and if it were won."""
    if verdicts.empty:
        return float("nan"), float("nan")
    scores = verdicts["outcome"].map(DECIDED).astype(float)
    low, high = (float(scores.fillna(value).groupby(verdicts["prompt_id"]).mean().mean()) for value in (0.0, 1.0))
    return low, high


def _worst_category(decided: pd.DataFrame) -> tuple[str, float]:
    named = decided[decided["category"].fillna("") != ""]
    if named["category"].nunique() < 2:
        return "", float("nan")
    rates = named.groupby(["category", "prompt_id"])["score"].mean().groupby("category").mean()
    return str(rates.idxmin()), float(rates.min())
