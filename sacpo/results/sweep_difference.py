"""The difference of two sweeps, trial by trial, on the prompts that both judged."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from sacpo.results.load import Results
from sacpo.results.win_rates import prompt_matrix, scored
from sacpo.statistics.win_rate import differences

COLUMNS = ("label", "criterion", "first", "second", "difference", "low", "high", "n_prompts")


@dataclass(frozen=True)
class SweepDifference:
    """Two sweeps beside each other.

    Attributes:
        trials: One row for each criterion of each trial that is done in both, matched by label: `first` and `second`
            (win rates), `difference` (second minus first, on the prompts that both judged), `low` and `high` (95 %,
            paired bootstrap over prompts), `n_prompts`.
        only_first: Labels of the trials that only the first sweep has done.
        only_second: The same of the second.
        notes: Reasons why the numbers may not be comparable.
    """

    trials: pd.DataFrame
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    notes: tuple[str, ...]


def difference(first: Results, second: Results) -> SweepDifference:
    """Compare two sweeps."""
    done = [results.trials[results.trials["status"] == "done"].set_index("label") for results in (first, second)]
    common = [label for label in done[0].index if label in done[1].index]
    notes = [] if _baseline(first) == _baseline(second) else ["the sweeps have different SFT policies"]
    rows = []
    scores = [_scores(results) for results in (first, second)]
    for criterion in sorted({c for table in scores for c in table["criterion"].unique()}):
        judges = [_judges(table, criterion) for table in scores]
        if judges[0] != judges[1]:
            notes.append(f"{criterion} was judged by {judges[0]} in the first sweep and by {judges[1]} in the second")
        for label in common:
            pair = pd.concat(
                [
                    table[
                        (table["criterion"] == criterion) & (table["trial_id"] == trials.at[label, "trial_id"])
                    ].assign(sweep=number)
                    for number, (table, trials) in enumerate(zip(scores, done, strict=True))
                ]
            )
            if pair["sweep"].nunique() < 2:
                continue
            matrix = prompt_matrix(pair, "sweep")
            (estimate,) = differences(matrix.to_numpy(dtype=float), [(1, 0)])
            rates = [trials.at[label, criterion] for trials in done]
            rows.append((label, criterion, *rates, estimate.value, estimate.low, estimate.high, estimate.n_prompts))
    return SweepDifference(
        pd.DataFrame(rows, columns=list(COLUMNS)),
        tuple(label for label in done[0].index if label not in done[1].index),
        tuple(label for label in done[1].index if label not in done[0].index),
        tuple(notes),
    )


def _scores(results: Results) -> pd.DataFrame:
    """The decided verdicts of the criteria's own judges against the SFT policy, one row each."""
    verdicts = results.verdicts
    own = verdicts["panel"].eq("") & verdicts["baseline_id"].eq(_baseline(results))
    return scored(verdicts[own & verdicts["trial_id"].ne(_baseline(results))])


def _baseline(results: Results) -> str:
    return str(results.trials.loc[results.trials["method"] == "sft", "trial_id"].iloc[0])


def _judges(scores: pd.DataFrame, criterion: str) -> str:
    rows = scores[scores["criterion"] == criterion]
    return ", ".join(sorted({f"{judge} {revision}".strip() for judge, revision in _names(rows)})) or "no judge"


def _names(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["judge"].fillna(""), rows["judge_revision"].fillna(""), strict=True))
