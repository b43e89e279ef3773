"""Whether enough verdicts were decided to report a win rate, and otherwise why they are missing."""

from __future__ import annotations

import pandas as pd

from sacpo.judges.verdicts import SCORES

_REASON_LENGTH = 300  # characters of a reply that a reason shows


def coverage_problem(
    criterion: str, verdicts: pd.DataFrame, smallest: float, judge: str = "", is_imported: bool = False
) -> str:
    """The reason why a win rate is not reported; empty if enough verdicts were decided.

    Args:
        criterion: The criterion.
        verdicts: One judge's verdicts on one trial and criterion.
        smallest: The setting `evaluation.min_coverage`.
        judge: Name of the judge in the panel; empty for the criterion's own judge.
        is_imported: The verdicts come from a file, so that no command can ask for the missing ones.
    """
    if verdicts.empty:
        return ""
    undecided = verdicts[~verdicts["outcome"].isin(list(SCORES))]
    coverage = 1 - len(undecided) / len(verdicts)
    if coverage >= smallest:
        return ""
    outcomes = undecided["outcome"].value_counts()
    raw = undecided.loc[undecided["outcome"] == outcomes.index[0], "raw"].fillna("").str.slice(0, _REASON_LENGTH)
    by = f" by {judge}" if judge else ""
    if is_imported:
        way_out = (
            "have all answers of sacpo export --answers alpaca_eval annotated, and import that file under the same "
            "--name"
        )
    elif "refused" in undecided and undecided["refused"].eq(True).all():
        way_out = (
            "the endpoint refused all missing ones for content or length; the same command asks for them again, and if "
            "it refuses them again, take another judge or lower evaluation.min_coverage"
        )
    else:
        way_out = "run the same command again, which asks for the missing ones"
    return (
        f"judge {criterion}{by}: only {coverage:.1%} of the verdicts were decided, less than evaluation.min_coverage "
        f"({smallest:.1%}); {way_out}; {outcomes.iloc[0]} of {len(undecided)} missing verdicts are "
        f"{outcomes.index[0]}: {raw.value_counts().index[0]}"
    )
