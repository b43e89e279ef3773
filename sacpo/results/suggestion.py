"""The lambda that the preview expects to qualify, and the setting that trains it, where no policy qualifies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sacpo.results.load import Results
from sacpo.spaces.constraints import Constraint


@dataclass(frozen=True)
class Suggestion:
    """A policy that is not trained yet.

    Attributes:
        chain, beta: Its chain and the KL parameter of its first stage.
        expected: The smallest lambda at which the preview's estimate reaches the bound.
        qualifies: The smallest lambda at which the lower edge of the preview's 95 % band reaches it.
        setting: What `sacpo extend --set` takes to train the policy at `qualifies`; empty if it is trained already, or
            if the chain stands in the space in another form.
    """

    chain: str
    beta: float
    expected: float
    qualifies: float
    setting: str


def suggest(results: Results, constraint: Constraint) -> Suggestion | None:
    """The policy with the smallest lambda that the preview expects to satisfy a constraint.

    Args:
        results: The tables; `comparisons` may have `preview`.
        constraint: The constraint.

    Returns:
        None without a preview, or if no lambda of it reaches the bound with the lower edge of its band.
    """
    preview, criterion = results.comparisons.get("preview"), constraint.criterion
    if (
        preview is None
        or preview.empty
        or constraint.measure != "win_rate"
        or not {criterion, f"{criterion}_low"} <= set(preview.columns)
    ):
        return None
    suggestions = []
    for _, path in preview.groupby("second_id", sort=False):
        rows = path.sort_values("lambda")
        expected, low = (_first(rows, column, constraint.at_least) for column in (criterion, f"{criterion}_low"))
        if expected is not None and low is not None:
            chain, beta = str(rows["chain"].iloc[0]), float(rows["beta"].iloc[0])
            suggestions.append(Suggestion(chain, beta, expected, low, _setting(results, chain, beta, low)))
    return min(suggestions, key=lambda suggestion: suggestion.qualifies, default=None)


def _first(rows: pd.DataFrame, column: str, bound: float) -> float | None:
    """The smallest lambda at which a column reaches a bound, interpolated between rows; None if it never does."""
    x, y = rows["lambda"].to_numpy(dtype=float), rows[column].to_numpy(dtype=float)
    reached = np.flatnonzero(y >= bound)
    if not reached.size:
        return None
    i = int(reached[0])
    return float(x[i]) if i == 0 else float(np.interp(bound, y[i - 1 : i + 1], x[i - 1 : i + 1]))


def _setting(results: Results, chain: str, beta: float, value: float) -> str:
    """The grid of the chain with beta / lambda for this lambda added, as a setting of the space."""
    if value <= 0:
        return ""
    ratio = float(f"{beta / value:.3g}")
    for i, grid in enumerate(results.sweep.space.get("chains", [])):
        ratios: list[list[Any]] = grid.get("beta_over_lambda") or []
        if grid["chain"] == chain and beta in grid["beta"] and len(ratios) == 1 and ratio not in ratios[0]:
            return f"chains.{i}.beta_over_lambda={json.dumps([[*ratios[0], ratio]])}"
    return ""
