"""The front as a picture: PNG, SVG or PDF. `sacpo.plots` offers the parts, each on the axes that a caller gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sacpo.errors import SacpoError
from sacpo.reporting.new_axes import add_legend, axes_or_new, fix_layout
from sacpo.reporting.point_labels import Label, place_labels
from sacpo.reporting.series import (
    FRONT,
    GOLD,
    GREY,
    INK,
    PREVIEW,
    TITLES,
    WIN_RATES,
    all_series,
    bars,
    counts_text,
    drawn,
    front_points,
    interval_points,
    optima,
    point_label,
    preview_paths,
    text_colour,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sacpo.results.load import Results


FORMS = ("png", "svg", "pdf")
"""Forms of the pictures."""


def plot_front(results: Results, ax: Axes | None = None, *, labels: bool = True, legend: bool = True) -> Axes:
    """The trials in the plane of win rates: intervals, the front with its band, previews.

    Args:
        results: The tables; only trials that are done and have both win rates are drawn.
        ax: Where; None: in a figure of its own, by pyplot.
        labels: Whether each point has its setting beside it.
        legend: Whether the axes get a legend; below them in a figure of their own.
    """
    axes = axes_or_new(ax)
    _draw_win_rates(axes, results)
    _draw_preview(axes, results, WIN_RATES)
    if legend:
        add_legend(axes, is_new=ax is None)
    if labels:
        _add_labels(axes, _point_labels(axes, drawn(results.trials, WIN_RATES), WIN_RATES))
    return axes


def plot_exact(results: Results, ax: Axes | None = None, *, labels: bool = True, legend: bool = True) -> Axes:
    """The trials' exact expectations beside the exact optimum; arguments as for `plot_front`.

    Raises:
        SacpoError: the sweep is not in the synthetic world, so that nothing is exact.
    """
    if results.exact is None:
        raise SacpoError(f"{results.sweep.name} is not in the synthetic world, so it has no exact values to draw")
    axes = axes_or_new(ax)
    _draw_preview(axes, results, GOLD)
    _draw_gold(axes, results.trials, results.exact)
    if legend:
        add_legend(axes, is_new=ax is None)
    if labels:
        _add_labels(axes, _exact_labels(axes, results.trials, results.exact))
    return axes


def plot_trials(
    trials: pd.DataFrame,
    ax: Axes | None = None,
    columns: tuple[str, str] = WIN_RATES,
    *,
    labels: bool = True,
    legend: bool = True,
) -> Axes:
    """The points of any table with the columns of `trials`, without a front.

    Args:
        trials: `label`, `method`, `chain`, `beta`, `beta_over_lambda`, `lambda`, `q`, `seed`, `status`, `on_front` and
            the two columns, each with `_low` and `_high` where it has intervals.
        ax: Where; None: in a figure of its own, by pyplot.
        columns: What the horizontal and the vertical axis show.
        labels: Whether each point has its setting beside it.
        legend: Whether the axes get a legend; below them in a figure of their own.
    """
    axes = axes_or_new(ax)
    _draw_series(axes, trials, columns)
    if legend:
        add_legend(axes, is_new=ax is None)
    if labels:
        _add_labels(axes, _point_labels(axes, drawn(trials, columns), columns))
    return axes


def draw_front(results: Results) -> Figure:
    """The picture of the front: the plane of win rates and, in the synthetic world, exact values beside it.

    Args:
        results: The tables; only trials that are done and have both win rates are drawn.

    Returns:
        The figure; as a PNG it is 1600 pixels wide (1100 without an exact optimum).
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    is_exact = results.exact is not None
    figure = Figure(figsize=(12.8, 7.0) if is_exact else (8.8, 7.2), dpi=125, layout=layout)
    plots = (plot_front, plot_exact) if is_exact else (plot_front,)
    panels = figure.subplots(1, len(plots), squeeze=False)[0]
    named: dict[str, Any] = {}
    for plot, axes in zip(plots, panels, strict=True):
        plot(results, axes, labels=False, legend=False)
        handles, names = axes.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
    if named:
        columns = 3 if is_exact else 2
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False)
    fix_layout(figure)  # before the labels, which are placed by pixels
    place_labels(panels[0], _point_labels(panels[0], drawn(results.trials, WIN_RATES), WIN_RATES), figure.dpi)
    if results.exact is not None:
        place_labels(panels[1], _exact_labels(panels[1], results.trials, results.exact), figure.dpi)
    return figure


def save(axes: Axes, path: str | Path, **options: Any) -> None:
    """Write the figure of these axes as the PNG, SVG or PDF that the file's suffix names, for a paper.

    A PDF has its fonts embedded as TrueType (type 42), which publishers ask for. The same figure gives the same bytes.

    Args:
        axes: Any axes of the figure.
        path: The file to write.
        options: Further arguments of matplotlib's `savefig`, such as `dpi`.

    Raises:
        SacpoError: the suffix names no form.
    """
    path = Path(path)
    form = path.suffix.removeprefix(".")
    if form not in FORMS:
        raise SacpoError(f"{path}: must end in .{', .'.join(FORMS)}")
    save_figure(axes.figure.canvas.figure, path, form, **options)


def save_figure(figure: Figure, path: Path, form: str, **options: Any) -> None:
    """Write a figure as `png`, `svg` or `pdf`. The same figure gives the same bytes."""
    import matplotlib as mpl

    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form)
    with mpl.rc_context({"svg.hashsalt": "sacpo", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(path, format=form, metadata=metadata, **options)


def _draw_win_rates(axes: Axes, results: Results) -> None:
    trials = results.trials
    _draw_series(axes, trials, WIN_RATES)
    prompts = counts_text(results.verdicts)
    axes.set_title(f"win rates, with 95 % intervals over {prompts or 'prompts'}", loc="left", fontsize=10, color=INK)
    for line in (axes.axvline, axes.axhline):
        line(0.5, color=GREY, linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
    points = front_points(trials)
    band = results.comparisons.get("front")
    if not points:
        return
    axes.autoscale(enable=False)
    if band is not None and len(band):
        level, low, high = (band[column] for column in (WIN_RATES[0], "low", "high"))
        axes.fill_between(
            level, low, high, color=FRONT, alpha=0.12, linewidth=0, zorder=0, label="95 % band of the front"
        )
    # The staircase bounds the area that the trials dominate, up to the left and the bottom edge.
    x = [axes.get_xlim()[0], *(x for x, _ in points), points[-1][0]]
    y = [points[0][1], *(y for _, y in points), axes.get_ylim()[0]]
    axes.step(x, y, where="pre", color=FRONT, linewidth=1.3, zorder=2, label="front (ringed)")
    xs, ys = zip(*points, strict=True)
    axes.scatter(xs, ys, s=150, facecolors="none", edgecolors=INK, linewidths=1.3, zorder=5)


_DASHES = ((0, (4, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))


def _draw_preview(axes: Axes, results: Results, columns: tuple[str, str]) -> None:
    for number, (name, *path) in enumerate(preview_paths(results.comparisons.get("preview"), columns)):
        points, low, high = map(np.array, path)
        dash = _DASHES[number % len(_DASHES)]
        axes.plot(*points.T, color=PREVIEW, linewidth=1.8, linestyle=dash, zorder=3, label=name)
        marked = interval_points(len(points))
        below, above = (points - low)[marked].T.clip(0), (high - points)[marked].T.clip(0)
        x, y = points[marked].T
        axes.errorbar(
            x,
            y,
            xerr=(below[0], above[0]),
            yerr=(below[1], above[1]),
            fmt="none",
            ecolor=PREVIEW,
            elinewidth=0.8,
            alpha=0.3,
            zorder=1,
        )


def _draw_gold(axes: Axes, trials: pd.DataFrame, exact: pd.DataFrame) -> None:
    marks = optima(trials, exact)
    for number, (beta, grid) in enumerate(exact.sort_values("lambda").groupby("beta")):
        dash = ("-", "--", "-.", ":")[number % 4]
        axes.plot(
            grid[GOLD[0]], grid[GOLD[1]], color=GREY, linestyle=dash, linewidth=1.8, label=f"exact optimum, β={beta:g}"
        )
    axes.set_title("exact expectations, beside the optimum", loc="left", fontsize=10, color=INK)
    xs, ys = [mark[GOLD[0]] for mark in marks], [mark[GOLD[1]] for mark in marks]
    axes.scatter(xs, ys, marker="x", s=55, color=FRONT, linewidths=1.6, zorder=3, label="optimum at a trial's λ")
    _draw_series(axes, trials, GOLD, [(mark[GOLD[0]], mark[GOLD[1]]) for mark in marks], named=False)


def _draw_series(
    axes: Axes,
    trials: pd.DataFrame,
    columns: tuple[str, str],
    more: Sequence[tuple[float, float]] = (),
    named: bool = True,
) -> None:
    """Draw the points, after the limits of the axes are set.

    Args:
        axes: Where.
        trials: The trial table.
        columns: The plane.
        more: Further points that must lie within the limits.
        named: Whether the series get a name for the legend.
    """
    _set_limits(axes, drawn(trials, columns), columns, more)
    for series in all_series(drawn(trials, columns)):
        size = {"*": 13.0, "P": 10.0, "X": 9.5}.get(series.marker, 8.0)
        for number, run in enumerate(series.runs):
            x, y = _clipped(axes, run, columns)
            axes.plot(x, y, color=series.colour, linewidth=1.2, alpha=0.5, zorder=3)
            axes.plot(
                *(x, y),
                color=series.colour,
                marker=series.marker,
                markersize=size,
                markeredgecolor="white",
                linestyle="none",
                zorder=4,
                clip_on=False,
                label=series.name if named and number == 0 else None,
            )
            if (run["method"] == "sentinel").all():
                continue  # it may lie outside, where its bars mean nothing
            xerr, yerr = (bars(run, column) for column in columns)
            axes.errorbar(
                x, y, xerr=xerr, yerr=yerr, fmt="none", ecolor=series.colour, elinewidth=0.8, alpha=0.35, zorder=1
            )
    axes.set_xlabel(TITLES[columns[0]], fontsize=11)
    axes.set_ylabel(TITLES[columns[1]], fontsize=11)
    axes.grid(color="#eef2f6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _set_limits(axes: Axes, rows: pd.DataFrame, columns: tuple[str, str], more: Sequence[tuple[float, float]]) -> None:
    """Limits that hold all policies with their intervals. Sentinels do not stretch them; they are drawn at the edge."""
    policies = rows[rows["method"] != "sentinel"]
    policies = policies if len(policies) else rows
    for number, column in enumerate(columns):
        names = [name for name in (column, f"{column}_low", f"{column}_high") if name in policies]
        values = [*policies[names].to_numpy(dtype=float).ravel(), *(point[number] for point in more)]
        finite = [value for value in values if np.isfinite(value)]
        if finite:
            pad = 0.07 * (max(finite) - min(finite)) or 0.05
            axes.set(**{"xlim" if number == 0 else "ylim": (min(finite) - pad, max(finite) + pad)})


def _clipped(axes: Axes, rows: pd.DataFrame, columns: tuple[str, str]) -> tuple[pd.Series, pd.Series]:
    """Coordinates of points, moved to the edge of the axes where they lie outside."""
    x, y = (rows[column].astype(float) for column in columns)
    return x.clip(*axes.get_xlim()), y.clip(*axes.get_ylim())


def _point_labels(axes: Axes, rows: pd.DataFrame, columns: tuple[str, str]) -> list[Label]:
    labels = []
    for series in all_series(rows):
        for run in series.runs:
            for row, x, y in zip(run.to_dict("records"), *_clipped(axes, run, columns), strict=True):
                true = float(row[columns[0]]), float(row[columns[1]])
                is_outside = (x, y) != true
                text = point_label(row) + (f" ({true[0]:.2f}, {true[1]:.2f})" if is_outside else "")
                labels.append((x, y, text, text_colour(series.colour)))
    return labels


def _exact_labels(axes: Axes, trials: pd.DataFrame, exact: pd.DataFrame) -> list[Label]:
    marks = [(r["expected_reward"], r["expected_safety"], f"λ={r['lambda']:.3g}", FRONT) for r in optima(trials, exact)]
    return _point_labels(axes, drawn(trials, GOLD), GOLD) + marks


def _add_labels(axes: Axes, labels: Sequence[Label]) -> None:
    figure = axes.figure.canvas.figure
    figure.draw_without_rendering()  # the places depend on the layout
    place_labels(axes, labels, figure.dpi)
