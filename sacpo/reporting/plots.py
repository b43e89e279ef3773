"""The front as a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sacpo.reporting.series import (
    FRONT,
    GOLD,
    GREY,
    INK,
    TITLES,
    WIN_RATES,
    all_series,
    bars,
    drawn,
    front_points,
    optima,
    point_label,
    text_colour,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox


def draw_front(trials: pd.DataFrame, exact: pd.DataFrame | None, path: Path) -> None:
    """Draw the trials in the plane of win rates and, in the synthetic world, beside the exact optimum.

    Args:
        trials: The trial table; only trials that are done and have both win rates are drawn.
        exact: Optima over a dense grid of lambda (beta, lambda, expected_reward, expected_safety), or None.
        path: The PNG to write, 1600 pixels wide (1100 without `exact`).
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(8.8, 7.2) if exact is None else (12.8, 7.0), dpi=125, layout=layout)
    left, *right = figure.subplots(1, 1 if exact is None else 2, squeeze=False)[0]
    _draw_win_rates(left, trials)
    if exact is not None:
        _draw_gold(right[0], trials, exact)
    handles, names = left.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=2 if exact is None else 3, frameon=False)
    figure.draw_without_rendering()  # fixes the layout, which the placing of labels needs
    figure.set_layout_engine("none")
    _place_labels(left, _point_labels(drawn(trials, WIN_RATES), WIN_RATES), figure.dpi)
    if exact is not None:
        marks = [
            (r["expected_reward"], r["expected_safety"], f"λ={r['lambda']:g}", FRONT) for r in optima(trials, exact)
        ]
        _place_labels(right[0], _point_labels(drawn(trials, GOLD), GOLD) + marks, figure.dpi)
    figure.savefig(path, format="png")


def _draw_win_rates(axes: Axes, trials: pd.DataFrame) -> None:
    _draw_series(axes, trials, WIN_RATES)
    axes.set_title("win rates, with 95 % intervals over prompts", loc="left", fontsize=11, color=INK)
    for line in (axes.axvline, axes.axhline):
        line(0.5, color=GREY, linewidth=0.9, linestyle=(0, (5, 4)), zorder=1)
    points = front_points(trials)
    if not points:
        return
    # The staircase bounds the area that the trials dominate, up to the left and the bottom edge.
    axes.autoscale(enable=False)
    x = [axes.get_xlim()[0], *(x for x, _ in points), points[-1][0]]
    y = [points[0][1], *(y for _, y in points), axes.get_ylim()[0]]
    axes.fill_between(x, y, axes.get_ylim()[0], step="pre", color=FRONT, alpha=0.05, linewidth=0, zorder=0)
    axes.step(x, y, where="pre", color=FRONT, linewidth=1.3, zorder=2, label="front (ringed)")
    xs, ys = zip(*points, strict=True)
    axes.scatter(xs, ys, s=150, facecolors="none", edgecolors=INK, linewidths=1.3, zorder=5)


def _draw_gold(axes: Axes, trials: pd.DataFrame, exact: pd.DataFrame) -> None:
    for number, (beta, grid) in enumerate(exact.sort_values("lambda").groupby("beta")):
        dash = ("-", "--", "-.", ":")[number % 4]
        axes.plot(
            grid[GOLD[0]], grid[GOLD[1]], color=GREY, linestyle=dash, linewidth=1.8, label=f"exact optimum, β={beta:g}"
        )
    axes.set_title("exact expectations, beside the optimum", loc="left", fontsize=11, color=INK)
    marks = optima(trials, exact)
    xs, ys = [mark[GOLD[0]] for mark in marks], [mark[GOLD[1]] for mark in marks]
    axes.scatter(xs, ys, marker="x", s=55, color=FRONT, linewidths=1.6, zorder=3, label="optimum at a trial's λ")
    _draw_series(axes, trials, GOLD, named=False)
    axes.legend(loc="best", frameon=True, framealpha=0.85, edgecolor="none", fontsize=9)


def _draw_series(axes: Axes, trials: pd.DataFrame, columns: tuple[str, str], named: bool = True) -> None:
    for series in all_series(drawn(trials, columns)):
        size = {"*": 13.0, "P": 10.0, "X": 9.5}.get(series.marker, 8.0)
        for number, run in enumerate(series.runs):
            x, y = (run[column] for column in columns)
            axes.plot(x, y, color=series.colour, linewidth=1.2, alpha=0.5, zorder=3)
            axes.plot(
                *(x, y),
                color=series.colour,
                marker=series.marker,
                markersize=size,
                markeredgecolor="white",
                linestyle="none",
                zorder=4,
                label=series.name if named and number == 0 else None,
            )
            xerr, yerr = (bars(run, column) for column in columns)
            axes.errorbar(
                x, y, xerr=xerr, yerr=yerr, fmt="none", ecolor=series.colour, elinewidth=0.8, alpha=0.35, zorder=1
            )
    axes.set_xlabel(TITLES[columns[0]], fontsize=11)
    axes.set_ylabel(TITLES[columns[1]], fontsize=11)
    axes.margins(0.07)
    axes.grid(color="#eef2f6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


Label = tuple[float, float, str, str]


def _point_labels(rows: pd.DataFrame, columns: tuple[str, str]) -> list[Label]:
    return [
        (row[columns[0]], row[columns[1]], point_label(row), text_colour(series.colour))
        for series in all_series(rows)
        for run in series.runs
        for row in run.to_dict("records")
    ]


def _place_labels(axes: Axes, labels: list[Label], dpi: float) -> None:
    """Put each label beside its point, at the position that covers least of the markers and of earlier labels."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    pixels = axes.transData.transform([(x, y) for x, y, _, _ in labels] or np.empty((0, 2)))
    half = 6 * dpi / 72
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
        best: tuple[float, tuple[float, float], Bbox] | None = None
        for gap in (6, 12, 20):
            for dx, dy in ((1, 0.6), (1, -0.6), (-1, 0.6), (-1, -0.6), (0, 1), (0, -1), (1, 0), (-1, 0)):
                cx = px + dx * (gap * dpi / 72 + size.width / 2)
                cy = py + dy * (gap * dpi / 72 + size.height / 2)
                box = Bbox.from_bounds(cx - size.width / 2, cy - size.height / 2, size.width, size.height)
                cost = gap + sum(_overlap(box, other) for other in taken) + 2 * (_area(box) - _overlap(box, axes.bbox))
                if best is None or cost < best[0]:
                    best = (cost, ((cx - px) * 72 / dpi, (cy - py) * 72 / dpi), box)
        assert best is not None
        note.set_position(best[1])
        taken.append(best[2])


def _area(box: Bbox) -> float:
    return float(box.width * box.height)


def _overlap(first: Bbox, second: Bbox) -> float:
    from matplotlib.transforms import Bbox

    common = Bbox.intersection(first, second)
    return 0.0 if common is None else _area(common)
