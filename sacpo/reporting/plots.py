"""The front as a picture: PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
    from matplotlib.transforms import Bbox

    from sacpo.results.load import Results


def draw_front(results: Results) -> Figure:
    """Draw the trials in the plane of win rates and, in the synthetic world, beside the exact optimum.

    Args:
        results: The tables; only trials that are done and have both win rates are drawn.

    Returns:
        The figure; as a PNG it is 1600 pixels wide (1100 without an exact optimum).
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    trials, exact = results.trials, results.exact
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(8.8, 7.2) if exact is None else (12.8, 7.0), dpi=125, layout=layout)
    left, *right = figure.subplots(1, 1 if exact is None else 2, squeeze=False)[0]
    _draw_win_rates(left, results)
    _draw_preview(left, results, WIN_RATES)
    if exact is not None:
        _draw_preview(right[0], results, GOLD)
        _draw_gold(right[0], trials, exact)
    named: dict[str, Any] = {}
    for axes in (left, *right):
        handles, names = axes.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
    if named:
        columns = 2 if exact is None else 3
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False)
    figure.draw_without_rendering()  # fixes the layout, which the placing of labels needs
    figure.set_layout_engine("none")
    place_labels(left, _point_labels(left, drawn(trials, WIN_RATES), WIN_RATES), figure.dpi)
    if exact is not None:
        marks = [
            (r["expected_reward"], r["expected_safety"], f"λ={r['lambda']:.3g}", FRONT) for r in optima(trials, exact)
        ]
        place_labels(right[0], _point_labels(right[0], drawn(trials, GOLD), GOLD) + marks, figure.dpi)
    return figure


def save_figure(figure: Figure, path: Path, form: str) -> None:
    """Write a figure as `png`, `svg` or `pdf`. The same figure gives the same bytes."""
    import matplotlib as mpl

    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(form)
    with mpl.rc_context({"svg.hashsalt": "sacpo", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(path, format=form, metadata=metadata)


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


Label = tuple[float, float, str, str]
"""x and y of the point in data units, text, colour."""


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


_GAPS = (6, 12, 20, 30, 42, 56, 72, 90)  # points between marker and label
_DIRECTIONS = [
    (np.cos(angle), np.sin(angle)) for angle in np.pi / 8 * np.array([1, 15, 7, 9, 3, 13, 5, 11, 0, 8, 4, 12])
]


def place_labels(axes: Axes, labels: Sequence[Label], dpi: float) -> list[Bbox]:
    """Put each label at the nearest place that touches no marker and no other label, with a line to a point far away.

    Returns:
        The boxes of the labels, in pixels.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    pixels = axes.transData.transform([(x, y) for x, y, _, _ in labels] or np.empty((0, 2)))
    half = 7.5 * dpi / 72
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in pixels]
    for (x, y, text, colour), (px, py) in zip(labels, pixels, strict=True):
        note = axes.annotate(
            text,
            xy=(x, y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            color=colour,
            zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )
        size = note.get_window_extent()
        best: tuple[float, float, float, Bbox] | None = None
        for gap in _GAPS:
            for dx, dy in _DIRECTIONS:
                cx = px + dx * (gap * dpi / 72 + size.width / 2)
                cy = py + dy * (gap * dpi / 72 + size.height / 2)
                box = Bbox.from_bounds(cx - size.width / 2, cy - size.height / 2, size.width, size.height)
                covered = sum(_overlap(box, other) for other in taken) + _area(box) - _overlap(box, axes.bbox)
                if best is None or covered < best[0]:
                    best = (covered, cx, cy, box)
            if best is not None and best[0] < 1e-6:
                break
        assert best is not None
        _, cx, cy, box = best
        note.set_position(((cx - px) * 72 / dpi, (cy - py) * 72 / dpi))
        if np.hypot(cx - px, cy - py) - size.width / 2 > 14 * dpi / 72:
            ends = axes.transData.inverted().transform([(px, py), (cx, cy)])
            axes.plot(*ends.T, color=colour, linewidth=0.5, alpha=0.6, zorder=3)
        taken.append(box)
    return taken[len(labels) :]


def _area(box: Bbox) -> float:
    return float(box.width * box.height)


def _overlap(first: Bbox, second: Bbox) -> float:
    from matplotlib.transforms import Bbox

    common = Bbox.intersection(first, second)
    return 0.0 if common is None else _area(common)
