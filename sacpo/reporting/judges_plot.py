"""What is known about each judge, on one axis from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sacpo.errors import SacpoError
from sacpo.reporting.new_axes import add_legend, axes_or_new, plain
from sacpo.reporting.series import GREY, INK
from sacpo.results.judges_table import MAIN
from sacpo.statistics.win_rate import win_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sacpo.results.load import Results

_MEASURES = {
    "canary": ("prefers the better canned answer (1 is best)", "#0072B2", "o"),
    "held_out": ("accuracy on held-out pairs (1 is best)", "#009E73", "s"),
    "fooled": ("prefers canned answers that talk it round (0 is best)", "#D55E00", "X"),
    "people": ("agrees with people (1 is best)", "#CC79A7", "^"),
    "itself": ("the baseline against itself (0.5 is best)", INK, "D"),
}
_COLUMNS = {
    "canary": ("canary_win_rate", "canary_low", "canary_high"),
    "held_out": ("held_out_accuracy", "held_out_low", "held_out_high"),
    "fooled": ("fooled_fraction", "fooled_low", "fooled_high"),
}


def plot_judges(results: Results, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """What tests of the judges gave, one row for each judge and criterion, with 95 % intervals.

    The tests: canned pairs, held-out pairs of a judge that the sweep trained, canned answers that talk a judge round,
    agreement with human labels, and the A/A test. A test that a judge had no part in has no point.

    Args:
        results: The tables.
        ax: Where; None: in a figure of its own, by pyplot.
        legend: Whether the axes get a legend; below them in a figure of their own.

    Raises:
        SacpoError: the results have no table of judges.
    """
    judges = results.comparisons.get("judges")
    if judges is None or judges.empty:
        raise SacpoError("these results have no table of judges: the sweep has not ended")
    axes = axes_or_new(ax, (7.2, 1.9 + 0.7 * len(judges)))
    known: set[str] = set()
    for row, judge in enumerate(judges.to_dict("records")):
        values = {name: _numbers(judge.get(column) for column in columns) for name, columns in _COLUMNS.items()}
        values["people"] = _people(results, judge)
        values["itself"] = _against_itself(results, judge)
        given = {name: value for name, value in values.items() if np.isfinite(value[0])}
        for number, (name, (value, low, high)) in enumerate(given.items()):
            title, colour, marker = _MEASURES[name]
            y = row + 0.16 * (number - (len(given) - 1) / 2)
            axes.errorbar(
                value,
                y,
                xerr=[[max(0.0, value - low)], [max(0.0, high - value)]] if np.isfinite(low) else None,
                fmt=marker,
                color=colour,
                markeredgecolor="white",
                markersize=8,
                label=None if name in known else title,
            )
            known.add(name)
    axes.axvline(0.5, color=GREY, linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
    names = [f"{judge['criterion']}\n{judge['judge']} ({judge['panel']})" for judge in judges.to_dict("records")]
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel("share of the pairs", fontsize=11)
    plain(axes)
    if legend:
        add_legend(axes, is_new=ax is None)
    return axes


Measured = tuple[float, float, float]
"""Value, lower and upper bound; NaN where there is none."""
_NOTHING = (math.nan, math.nan, math.nan)


def _numbers(values: Iterable[float | None]) -> Measured:
    value, low, high = (math.nan if value is None else float(value) for value in values)
    return value, low, high


def _people(results: Results, judge: Mapping[Any, Any]) -> Measured:
    """Raw agreement with human labels; it has no interval in the table."""
    people = results.comparisons.get("human_judges")
    if people is None:
        return _NOTHING
    rows = people[(people["criterion"] == judge["criterion"]) & (people["judge"] == judge["panel"])]
    return (float(rows["raw"].iloc[0]), math.nan, math.nan) if len(rows) else _NOTHING


def _against_itself(results: Results, judge: Mapping[Any, Any]) -> Measured:
    """Win rate of the baseline's answers against the same answers."""
    verdicts = results.verdicts
    rows = verdicts[
        (verdicts["trial_id"] == verdicts["baseline_id"])
        & (verdicts["criterion"] == judge["criterion"])
        & (verdicts["panel"] == ("" if judge["panel"] == MAIN else judge["panel"]))
        & verdicts["score"].notna()
    ]
    if rows.empty:
        return _NOTHING
    rate = win_rate(rows["score"].to_numpy(dtype=float), rows["prompt_id"].to_numpy())
    return rate.value, rate.low, rate.high
