"""`python -m sacpo.report RESULTS`: tables, `pareto.png` and `report.html` rebuilt from what a sweep stored."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacpo.errors import SacpoError, StoreError
from sacpo.reporting.plots import (
    FRONT,
    GOLD,
    GREY,
    INK,
    TITLES,
    WIN_RATES,
    Series,
    all_series,
    bars,
    draw_front,
    drawn,
    front_points,
    known,
    optima,
    point_label,
    text_colour,
)
from sacpo.reporting.sections import sections
from sacpo.store.results_location import ResultsLocation

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from sacpo.results.tables import Results

__all__ = ["draw_front", "draw_front_interactive", "main", "write_html", "write_report"]

SAMPLES = 3
_ORIGIN = ("git_commit", "space_id", "store", "command")
_HOVER = {
    "kl_to_sft": "KL to SFT",
    "mean_response_tokens": "mean tokens",
    "expected_reward": "E[r]",
    "expected_safety": "E[g]",
    "share_of_optimum": "share of optimum",
    "support_mass": "support mass",
    "seconds": "seconds",
}


def draw_front_interactive(trials: pd.DataFrame, exact: pd.DataFrame | None) -> go.Figure:
    """Draw the same as `draw_front` for a page: hovering a point shows its trial and every number with its interval.

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
        value, low, high = (_number(row.get(f"{name}{end}")) for end in ("", "_low", "_high"))
        lines.append(f"{name} {value} [{low}, {high}], {_number(row.get(f'n_{name}'), 0)} verdicts")
    lines += [
        f"{title} {_number(row[column])}" for column, title in _HOVER.items() if known(row.get(column)) is not None
    ]
    return "<br>".join(lines)


def write_html(results: Results, path: Path) -> None:
    """Write the report as one page that loads nothing from anywhere (its Content-Security-Policy forbids it).

    Args:
        results: The tables. Text in them (answers, labels, errors) is escaped.
        path: The HTML file to write.
    """
    import plotly.io
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sacpo.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "known": known}
    figure = plotly.io.to_html(
        draw_front_interactive(results.trials, results.exact),
        full_html=False,
        include_plotlyjs=True,
        config={"displaylogo": False, "responsive": True},
        div_id="front",
    )
    page = environment.get_template("report.html.j2").render(
        sweep=results.sweep,
        space=json.dumps(results.sweep.get("space"), indent=2, ensure_ascii=False),
        trials=results.trials.assign(on_front=results.trials["on_front"].eq(True)).to_dict("records"),
        steps=results.steps.to_dict("records"),
        samples=_samples(results),
        sections=sections(results),
        front=figure,
        criteria=WIN_RATES,
        extra={column: _HOVER[column] for column in ("share_of_optimum", "support_mass") if column in results.trials},
        two_panels=results.exact is not None,
        origin={**results.sweep.get("versions", {}), **{key: results.sweep.get(key) for key in _ORIGIN}},
    )
    path.write_text(page, encoding="utf-8")


def _number(value: Any, digits: int = 3) -> str:
    number = known(value)
    return "\N{EN DASH}" if number is None else f"{number:,.{digits}f}"


def _samples(results: Results) -> list[dict[str, Any]]:
    """For each trial but the baseline, the answers to the first prompts of each criterion beside the baseline's."""
    first = results.responses.drop_duplicates(["trial_id", "criterion", "prompt_id"])
    by_trial = {trial: rows.to_dict("records") for trial, rows in first.groupby("trial_id")}
    outcomes = results.verdicts.groupby(["trial_id", "criterion", "prompt_id"])["outcome"].agg(list).to_dict()
    baselines = results.trials.loc[results.trials["method"] == "sft", "trial_id"]
    baseline = {(row["criterion"], row["prompt_id"]): row for trial in baselines for row in by_trial.get(trial, [])}
    found = []
    for trial in results.trials.to_dict("records"):
        if trial["method"] == "sft":
            continue
        pairs: list[dict[str, Any]] = []
        for criterion in WIN_RATES:
            mine = [row for row in by_trial.get(trial["trial_id"], []) if row["criterion"] == criterion][:SAMPLES]
            for row in mine:
                key = (criterion, row["prompt_id"])
                verdicts = outcomes.get((trial["trial_id"], *key), [])
                pairs.append({"answer": row, "baseline": baseline.get(key), "verdicts": verdicts})
        if pairs:
            found.append({"label": trial["label"], "pairs": pairs})
    return found


def write_report(results: Results, folder: Path) -> None:
    """Write `pareto.png` and `report.html` into a results folder, each whole or not at all.

    Raises:
        StoreError: one cannot be written.
    """
    with _replacing(folder / "pareto.png") as path:
        draw_front(results.trials, results.exact, path)
    with _replacing(folder / "report.html") as path:
        write_html(results, path)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 the report is written, 2 the folder holds no results or cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m sacpo.report", description="Rebuild a sweep's tables, plots and HTML page from what is stored."
    )
    parser.add_argument("results", help="the results folder of a sweep, a path or an s3:// URI")
    from sacpo.results.tables import load, refresh

    try:
        home = ResultsLocation(parser.parse_args(argv).results)
        folder = home.fetch()
        try:
            results = refresh(folder)
        except StoreError as error:
            print(f"{error}; the tables are used as they were last written", file=sys.stderr)
            results = load(folder)
        write_report(results, folder)
        home.publish()
    except SacpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name in ("report.html", "pareto.png", "trials.csv"):
        print(folder / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
