"""The table of missing verdicts: whose answers a judge did not decide on, and in which categories of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from sacpo.judges.verdicts import SCORES
from sacpo.results.judges_table import MAIN
from sacpo.results.win_rates import bounds_for_undecided

_JUDGE = ["criterion", "panel"]
_KEYS = [*_JUDGE, "trial_id", "category"]
_COLUMNS = [*_KEYS, "verdicts", "refused", "unavailable", "unparsable", "if_missing_lost", "if_missing_won"]


def undecided_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """One row for each trial and category of every criterion and judge of which a verdict is missing.

    Args:
        verdicts: The verdicts against the SFT policy, undecided ones included.

    Returns:
        Numbers of verdicts: all, refused by the endpoint for content or length, otherwise unavailable, unparsable; and
        the win rate in the category if all missing verdicts were lost, or won.
    """
    rows: list[dict[str, Any]] = []
    named = verdicts.assign(category=verdicts["category"].fillna(""), panel=verdicts["panel"].replace("", MAIN))
    is_missing = ~named["outcome"].isin(list(SCORES))
    counted = named[is_missing.groupby([named[key] for key in _JUDGE]).transform("any")]
    for key, group in counted.groupby(_KEYS):
        refused = group["refused"].eq(True)
        lost, won = bounds_for_undecided(group)
        rows.append(
            dict(zip(_KEYS, key, strict=True))
            | {
                "verdicts": len(group),
                "refused": int(refused.sum()),
                "unavailable": int((group["outcome"].eq("unavailable") & ~refused).sum()),
                "unparsable": int(group["outcome"].eq("unparsable").sum()),
                "if_missing_lost": lost,
                "if_missing_won": won,
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def refusal_notes(undecided: pd.DataFrame, labels: Mapping[str, str]) -> Iterator[str]:
    """For each criterion and judge of which an endpoint refused verdicts: how unequally it treated the policies.

    Args:
        undecided: The table of missing verdicts.
        labels: Trial id to label.
    """
    for (criterion, panel), rows in undecided.groupby(_JUDGE):
        sums = rows.groupby("trial_id")[["refused", "verdicts"]].sum()
        fractions = sums["refused"] / sums["verdicts"]
        if fractions.max() > 0:
            least, most = (labels[str(trial_id)] for trial_id in (fractions.idxmin(), fractions.idxmax()))
            shares = f"{fractions.min():.1%} (of {least})"
            if len(fractions) > 1:
                shares += f" to {fractions.max():.1%} (of {most})"
            yield f"{criterion} by {panel}: the endpoint refused {shares} of a policy's verdicts for content or length"
