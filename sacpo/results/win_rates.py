"""Verdicts to the columns that a trial has for each criterion: the win rate, its bounds, and signs of problems.

An undecided verdict (unparsable or unavailable) has no score. It shows in the coverage, and in the win rates for the
case that all undecided verdicts were lost, or won.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from sacpo.judges.verdicts import SCORES, order_inconsistency
from sacpo.statistics.win_rate import Estimate, estimates, win_rate

_CALL = ["prompt_id", "sample", "repeat", "order", "outcome"]
NAN = float("nan")
_UNKNOWN = Estimate(NAN, NAN, NAN, 0)


def scored(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The decided verdicts, with a column `score` in [0, 1]."""
    return verdicts.assign(score=verdict_scores(verdicts)).dropna(subset="score")


def verdict_scores(verdicts: pd.DataFrame) -> pd.Series[float]:
    """The score of every verdict in [0, 1]; NaN if it is not decided.

    Verdicts of older versions have no column `score`; theirs is that of the outcome.
    """
    by_outcome = verdicts["outcome"].map(SCORES).astype(float)
    return verdicts["score"].astype(float).fillna(by_outcome) if "score" in verdicts else by_outcome


def verdict_scale(verdicts: pd.DataFrame) -> str:
    """What the scores of these verdicts are, as the judge's setting `verdicts` says; empty without verdicts."""
    scales = verdicts["verdicts"] if "verdicts" in verdicts else pd.Series("outcomes", verdicts.index)
    return " and ".join(sorted(scales.fillna("outcomes").unique()))


def prompt_matrix(decided: pd.DataFrame, columns: str = "trial_id") -> pd.DataFrame:
    """Mean score of each prompt (rows) in each trial (columns); NaN if no verdict was decided."""
    return decided.pivot_table(index="prompt_id", columns=columns, values="score", aggfunc="mean", observed=True)


def estimate_columns(decided: pd.DataFrame, columns: str = "trial_id") -> dict[Any, Estimate]:
    """The win rate of every trial that has a decided verdict, all from the same resamples of prompts."""
    matrix = prompt_matrix(decided, columns)
    return dict(zip(matrix.columns, estimates(matrix.to_numpy(dtype=float)), strict=True)) if len(matrix) else {}


def criterion_columns(criterion: str, verdicts: pd.DataFrame, estimate: Estimate | None) -> dict[str, Any]:
    """One trial's columns of one criterion.

    Args:
        criterion: Name of the criterion, with which the columns' names begin.
        verdicts: The judge's verdicts on this trial and criterion.
        estimate: Their win rate; None if no verdict was decided.
    """
    decided = scored(verdicts)
    rate = estimate or _UNKNOWN
    if_lost, if_won = bounds_for_undecided(verdicts)
    category, category_rate = _worst_category(decided)
    inconsistency = order_inconsistency(
        ((prompt, sample, repeat), order, outcome)
        for prompt, sample, repeat, order, outcome in decided[_CALL].itertuples(index=False)
    )
    return {
        criterion: rate.value,
        f"{criterion}_low": rate.low,
        f"{criterion}_high": rate.high,
        f"n_{criterion}": len(decided),
        f"{criterion}_coverage": len(decided) / len(verdicts) if len(verdicts) else float("nan"),
        f"{criterion}_refused": int(verdicts["refused"].eq(True).sum()) if "refused" in verdicts else 0,
        f"{criterion}_if_missing_lost": if_lost,
        f"{criterion}_if_missing_won": if_won,
        f"{criterion}_order_inconsistency": float("nan") if inconsistency is None else inconsistency,
        f"{criterion}_worst_category": category,
        f"{criterion}_worst_category_rate": category_rate,
        f"{criterion}_verdicts": verdict_scale(verdicts),
        f"{criterion}_no_verdict_mass": float(decided["no_verdict_mass"].mean())
        if "no_verdict_mass" in decided
        else NAN,
    }


def no_rate(criterion: str) -> dict[str, Any]:
    """The columns of a win rate that is not reported, since a failure is never a number."""
    return dict.fromkeys((criterion, f"{criterion}_low", f"{criterion}_high"), float("nan"))


def baseline_columns(criterion: str, answers: int) -> dict[str, Any]:
    """The baseline's columns: its win rate is 0.5 by definition."""
    names = (criterion, f"{criterion}_low", f"{criterion}_high", f"n_{criterion}")
    return dict(zip(names, (0.5, 0.5, 0.5, answers), strict=True))


def categories(decided: pd.DataFrame) -> pd.DataFrame:
    """One row for each trial, criterion and category of prompts: win rate, 95 % bounds, number of prompts."""
    rows = []
    for keys, group in decided[decided["category"].fillna("") != ""].groupby(["trial_id", "criterion", "category"]):
        estimate = win_rate(group["score"].to_numpy(), group["prompt_id"].to_numpy())
        rows.append((*keys, estimate.value, estimate.low, estimate.high, estimate.n_prompts, verdict_scale(group)))
    names = ["trial_id", "criterion", "category", "win_rate", "low", "high", "n_prompts", "verdicts"]
    return pd.DataFrame(rows, columns=names)


def bounds_for_undecided(verdicts: pd.DataFrame) -> tuple[float, float]:
    """The win rate if every undecided verdict were lost, and if it were won."""
    if verdicts.empty:
        return float("nan"), float("nan")
    scores = verdict_scores(verdicts)
    low, high = (float(scores.fillna(value).groupby(verdicts["prompt_id"]).mean().mean()) for value in (0.0, 1.0))
    return low, high


def _worst_category(decided: pd.DataFrame) -> tuple[str, float]:
    """The category with the lowest win rate, and this rate; empty with fewer than two categories."""
    named = decided[decided["category"].fillna("") != ""]
    if named["category"].nunique() < 2:
        return "", float("nan")
    rates = named.groupby(["category", "prompt_id"])["score"].mean().groupby("category").mean()
    return str(rates.idxmin()), float(rates.min())
