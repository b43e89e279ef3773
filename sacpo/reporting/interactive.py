"""The front as an interactive figure for the HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from sacpo.reporting.formats import finite_or_none, number_text
from sacpo.reporting.series import (
    FRONT,
    GOLD,
    GREY,
    INK,
    TITLES,
    WIN_RATES,
    Series,
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
    import plotly.graph_objects as go

HOVER_COLUMNS = {
    "p_front": "P(on front)",
    "p_best": "P(best that satisfies)",
    "kl_to_sft": "KL to SFT",
    "mean_response_tokens": "mean tokens",
    "expected_reward": "E[r]",
    "expected_safety": "E[g]",
    "share_of_optimum": "share of optimum",
    "support_mass": "support mass",
    "seconds": "seconds",
}


def draw_front_interactive(trials: pd.DataFrame, exact: pd.DataFrame | None) -> go.Figure:
    """The same picture as `draw_front`; hovering a point shows its trial and its numbers with their intervals.

    Args:
        trials: The trial table; only trials that are done and have both win rates are drawn.
        exact: Optima over a dense grid of lambda, or None.
    """
    from plotly.subplots import make_subplots

    planes = [WIN_RATES] if exact is None else [WIN_RATES, GOLD]
    figure = make_subplots(rows=1, cols=len(planes), horizontal_spacing=0.08)
    if points := front_points(trials):
        edge = [drawn(trials, WIN_RATES)[[name, f"{name}_low"]].min().min() for name in WIN_RATES]
        x, y = zip((edge[0], points[0][1]), *points, (points[-1][0], edge[1]), strict=True)
        line = {"shape": "vh", "color": FRONT, "width": 1.5}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, name="front (outlined)", hoverinfo="skip", row=1, col=1)
    if exact is not None:
        _add_optima(figure, trials, exact)
    for column, plane in enumerate(planes, start=1):
        for series in all_series(drawn(trials, plane)):
            _add_series(figure, series, plane, column)
        axis = {"zeroline": False, "gridcolor": "#eef2f6", "linecolor": "#bcccdc", "ticks": "outside"}
        figure.update_xaxes(title=TITLES[plane[0]], **axis, row=1, col=column)
        figure.update_yaxes(title=TITLES[plane[1]], **axis, row=1, col=column)
    for draw in (figure.add_vline, figure.add_hline):
        draw(0.5, line={"dash": "dash", "color": GREY, "width": 1}, row=1, col=1)
    figure.update_layout(
        template="plotly_white",
        height=680,
        margin={"l": 60, "r": 50, "t": 30, "b": 60},
        font={"family": "system-ui, sans-serif", "color": INK},
        legend={"orientation": "h", "y": -0.12, "yanchor": "top"},
        hoverlabel={"align": "left", "bgcolor": "white"},
    )
    return figure


def _add_optima(figure: go.Figure, trials: pd.DataFrame, exact: pd.DataFrame) -> None:
    dashes = ("solid", "dash", "dashdot", "dot")
    for number, (beta, grid) in enumerate(exact.sort_values("lambda").groupby("beta")):
        figure.add_scatter(
            x=grid[GOLD[0]],
            y=grid[GOLD[1]],
            mode="lines",
            line={"color": GREY, "width": 2, "dash": dashes[number % len(dashes)]},
            name=f"exact optimum, β={beta:g}",
            hovertext=[f"exact optimum<br>β={beta:g}, λ={value:.3g}" for value in grid["lambda"]],
            hoverinfo="text",
            row=1,
            col=2,
        )
    marks = optima(trials, exact)
    figure.add_scatter(
        x=[mark[GOLD[0]] for mark in marks],
        y=[mark[GOLD[1]] for mark in marks],
        mode="markers+text",
        marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": FRONT}},
        text=[f"λ={mark['lambda']:g}" for mark in marks],
        textposition="top right",
        textfont={"color": FRONT, "size": 11},
        name="optimum at a trial's λ",
        hovertext=[f"exact optimum<br>β={mark['beta']:g}, λ={mark['lambda']:g}" for mark in marks],
        hoverinfo="text",
        row=1,
        col=2,
    )


def _add_series(figure: go.Figure, series: Series, plane: tuple[str, str], column: int) -> None:
    red, green, blue = (int(series.colour[i : i + 2], 16) for i in (1, 3, 5))
    for number, run in enumerate(series.runs):
        rows = run.to_dict("records")
        error = {}
        for axis, name in zip(("error_x", "error_y"), plane, strict=True):
            if (reach := bars(run, name)) is not None:
                faint = {"color": f"rgba({red},{green},{blue},0.3)", "thickness": 1, "width": 0}
                error[axis] = {"type": "data", "symmetric": False, "arrayminus": reach[0], "array": reach[1], **faint}
        ring = [2 if row["on_front"] and column == 1 else 0.5 for row in rows]
        figure.add_scatter(
            x=run[plane[0]],
            y=run[plane[1]],
            **error,
            mode="lines+markers+text",
            line={"color": f"rgba({red},{green},{blue},0.5)", "width": 1.5},
            marker={
                "color": series.colour,
                "symbol": series.symbol,
                "size": 10,
                "opacity": 1,
                "line": {"width": ring, "color": INK},
            },
            text=[escape(point_label(row)) for row in rows],
            textposition="top right",
            textfont={"size": 11, "color": text_colour(series.colour)},
            cliponaxis=False,
            hovertext=[_hover(row) for row in rows],
            hoverinfo="text",
            name=escape(series.name),
            legendgroup=series.name,
            showlegend=column == 1 and number == 0,
            row=1,
            col=column,
        )


def _hover(row: Mapping[Any, Any]) -> str:
    lines = [f"<b>{escape(str(row['label']))}</b>", escape(str(row["trial_id"]))]
    for name in WIN_RATES:
        value, low, high = (number_text(row.get(f"{name}{end}")) for end in ("", "_low", "_high"))
        lines.append(f"{name} {value} [{low}, {high}], {number_text(row.get(f'n_{name}'), 0)} verdicts")
    lines += [
        f"{title} {number_text(row[column])}"
        for column, title in HOVER_COLUMNS.items()
        if finite_or_none(row.get(column)) is not None
    ]
    return "<br>".join(lines)
