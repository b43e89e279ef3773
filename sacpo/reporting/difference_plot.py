"""The difference of two sweeps as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sacpo.errors import SacpoError
from sacpo.reporting.new_axes import add_legend, axes_or_new, plain
from sacpo.reporting.series import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sacpo.results.sweep_difference import SweepDifference

_LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "^"))


def plot_difference(difference: SweepDifference, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Win rate in the second sweep minus the first's, one row for each trial, with paired 95 % intervals.

    Args:
        difference: Of `sacpo.results.sweep_difference.difference`.
        ax: Where; None: in a figure of its own, by pyplot.
        legend: Whether the axes get a legend; below them in a figure of their own.

    Raises:
        SacpoError: no trial is done in both sweeps.
    """
    table = difference.trials
    if table.empty:
        raise SacpoError("no trial is done in both sweeps, so there is no difference to draw")
    labels = list(dict.fromkeys(table["label"]))
    axes = axes_or_new(ax, (8.4, 1.8 + 0.42 * len(labels)))
    criteria = list(dict.fromkeys(table["criterion"]))
    for number, criterion in enumerate(criteria):
        rows = table[table["criterion"] == criterion]
        colour, marker = _LOOKS[number % len(_LOOKS)]
        axes.errorbar(
            rows["difference"],
            [labels.index(label) + 0.2 * (number - (len(criteria) - 1) / 2) for label in rows["label"]],
            xerr=[rows["difference"] - rows["low"], rows["high"] - rows["difference"]],
            fmt=marker,
            color=colour,
            markeredgecolor="white",
            markersize=7,
            elinewidth=0.9,
            label=criterion,
        )
    axes.axvline(0, color=GREY, linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel("win rate in the second sweep minus the first's", fontsize=11)
    plain(axes)
    if legend:
        add_legend(axes, is_new=ax is None, columns=len(criteria))
    return axes
