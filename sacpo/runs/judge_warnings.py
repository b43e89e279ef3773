"""The reasons to doubt judges, as the end of a run prints them."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from sacpo.results.load import Results
from sacpo.results.undecided import refusal_notes


def judge_warnings(results: Results, panel: str | None = None) -> Iterator[str]:
    """The warnings of the canaries, and refusals that concern policies unequally.

    Args:
        results: The tables of a sweep that has ended.
        panel: Name of the judge whose warnings are given; None for all judges.
    """

    def rows(name: str) -> pd.DataFrame:
        table = results.comparisons.get(name, pd.DataFrame())
        return table if panel is None or table.empty else table[table["panel"] == panel]

    judges, undecided = rows("judges"), rows("undecided")
    if len(judges):
        yield from judges["canary_warnings"].dropna().loc[lambda texts: texts != ""]
    if len(undecided):
        labels = {str(row["trial_id"]): str(row["label"]) for row in results.trials.to_dict("records")}
        yield from refusal_notes(undecided, labels)
