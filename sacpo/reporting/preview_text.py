"""The preview in words: where each path is expected to reach a constraint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sacpo.results.preview import expected_lambda
from sacpo.spaces.constraints import Constraint

if TYPE_CHECKING:
    import pandas as pd


def preview_lines(preview: pd.DataFrame | None, constraints: Sequence[Constraint]) -> list[str]:
    """One line for each path of the table `preview` and constraint, and the path's warning; empty without a table."""
    if preview is None or preview.empty:
        return []
    lines = []
    for _, path in preview.groupby("second_id", sort=False):
        beta, largest = float(path["beta"].iloc[0]), float(path["lambda"].max())
        name = f"{path['chain'].iloc[0]}, beta {beta:g}"
        for constraint in constraints:
            lines.append(f"preview of {name}: {_expected(path, constraint, beta, largest)}")
        if path["warning"].iloc[0]:
            lines.append(f"preview of {name}: {path['warning'].iloc[0]}")
    return lines


def _expected(path: pd.DataFrame, constraint: Constraint, beta: float, largest: float) -> str:
    asked = f"{constraint.criterion} {constraint.at_least:g}"
    reached = expected_lambda(path, constraint.criterion, constraint.at_least)
    if math.isnan(reached.value):
        return f"{asked} is not expected up to lambda {largest:g}; a smaller beta_over_lambda goes further"
    if reached.value == 0:
        return f"{asked} is expected without a further stage"
    bounds = (reached.low, reached.high)
    low, high = (f"{bound:.2f}" if math.isfinite(bound) else f"above {largest:g}" for bound in bounds)
    return (
        f"{asked} is expected at lambda {reached.value:.2f} [{low}, {high}]; "
        f"beta_over_lambda {beta / reached.value:.3g} trains that policy"
    )
