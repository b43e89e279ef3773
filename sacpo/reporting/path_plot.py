"""A criterion along lambda: the preview of each path, and the policies that were trained or merged on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sacpo.errors import SacpoError
from sacpo.reporting.new_axes import add_legend, axes_or_new, plain
from sacpo.reporting.series import INK, METHOD_NAMES, TITLES, bars, lighter, look
from sacpo.spaces.merging import LINEAR

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sacpo.results.load import Results


_NAMES = METHOD_NAMES | {"one-step": "stage 1 (λ = 0)"}


def plot_path(
    results: Results, ax: Axes | None = None, criterion: str = "harmlessness", *, legend: bool = True
) -> Axes:
    """The win rate on a criterion along lambda, for every chain of two stages and each beta and seed.

    Points are policies with their 95 % intervals: stage 1 at lambda = 0, stage 2 at its lambda, and linear merges of
    both at q times the lambda of their second parent, which approximates their place. A line with a band is the
    preview, where the sweep has one. A dashed line is what the space's constraint asks.

    Args:
        results: The tables.
        ax: Where; None: in a figure of its own, by pyplot.
        criterion: A criterion of the sweep, or a number of the trial table such as `kl_to_sft`.
        legend: Whether the axes get a legend; below them in a figure of their own.

    Raises:
        SacpoError: the trial table has no such column.
    """
    trials = results.trials
    if criterion not in trials:
        criteria = [name for name in results.sweep.space["evaluation"] if name in trials]
        raise SacpoError(f"criterion {criterion!r}: the sweep has {', '.join(criteria)}")
    axes = axes_or_new(ax, (7.2, 5.4))
    for number, (name, path) in enumerate(_paths(trials[trials["status"] == "done"])):
        _draw_path(axes, path, criterion, name, number)
    for number, (name, rows) in enumerate(_previews(results, criterion)):
        colour = lighter(look("sacpo")[0], number)
        axes.plot(rows["lambda"], rows[criterion], color=colour, linewidth=1.6, label=name)
        axes.fill_between(
            rows["lambda"], rows[f"{criterion}_low"], rows[f"{criterion}_high"], color=colour, alpha=0.15, linewidth=0
        )
    for constraint in results.sweep.space.get("constraint", []):
        if constraint["criterion"] == criterion:
            threshold = constraint["at_least"]
            axes.axhline(threshold, color=INK, linewidth=0.9, linestyle=(0, (5, 4)), label=f"constraint: {threshold:g}")
    axes.set_xlabel("λ = β / (β/λ)", fontsize=11)
    axes.set_ylabel(TITLES.get(criterion, criterion.replace("_", " ")), fontsize=11)
    plain(axes)
    if legend:
        add_legend(axes, is_new=ax is None)
    return axes


def _paths(trials: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The policies of each path with their `position` on the axis of lambda, and the path's name."""
    paths = []
    for (chain, beta, seed), rows in trials[trials["method"] == "sacpo"].groupby(["chain", "beta", "seed"], sort=False):
        if rows["lambda"].isna().any():
            continue  # a chain of more stages has no one lambda
        first = str(chain).partition(">")[0]
        alike = (trials["beta"] == beta) & (trials["seed"] == seed)
        start = trials[alike & (trials["method"] == "one-step") & (trials["chain"] == first)]
        is_linear = trials["combination"] == LINEAR.text if "combination" in trials else True
        merges = trials[alike & (trials["method"] == "p-sacpo") & (trials["chain"] == chain) & is_linear]
        policies = pd.concat(part for part in (start, rows, merges) if len(part))
        position = policies["lambda"].fillna(0.0) * policies["q"].fillna(1.0)
        name = f"{str(chain).replace('>', ' → ')}, β={beta:g}" + (
            f", seed {seed:g}" if trials["seed"].nunique() > 1 else ""
        )
        paths.append((name, policies.assign(position=position)))
    return paths


def _draw_path(axes: Axes, path: pd.DataFrame, column: str, name: str, number: int) -> None:
    for method, rows in path.groupby("method", sort=False):
        colour, marker = look(str(method))
        axes.errorbar(
            rows["position"],
            rows[column],
            yerr=bars(rows, column),
            fmt=marker,
            color=lighter(colour, number),
            markeredgecolor="white",
            markersize=8,
            elinewidth=0.9,
            label=f"{_NAMES.get(str(method), method)}: {name}",
        )


def _previews(results: Results, column: str) -> list[tuple[str, pd.DataFrame]]:
    preview = results.comparisons.get("preview")
    if preview is None or column not in preview:
        return []
    groups = preview.groupby(["chain", "beta", "seed"], sort=False)
    return [(f"preview: {str(chain).replace('>', ' → ')}, β={beta:g}", rows) for (chain, beta, _), rows in groups]
