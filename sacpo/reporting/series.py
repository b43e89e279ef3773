"""The series of trials that every plot of the front shows: which trials belong together, colours, markers, labels."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sacpo.reporting.formats import finite_or_none
from sacpo.results.exact import chain_objectives
from sacpo.spaces.evaluation import CRITERIA
from sacpo.spaces.merging import LINEAR

if TYPE_CHECKING:
    import pandas as pd

WIN_RATES = CRITERIA
GOLD = ("expected_reward", "expected_safety")
TITLES = {
    "helpfulness": "helpfulness: win rate against SFT",
    "harmlessness": "harmlessness: win rate against SFT",
    "expected_reward": "gold reward E[r]",
    "expected_safety": "gold safety E[g]",
}
METHOD_NAMES = {
    "sft": "SFT",
    "one-step": "one step",
    "sacpo": "SACPO",
    "p-sacpo": "P-SACPO",
    "naive-merge": "naive merge",
    "logit-mix": "logit mixture",
    "served": "served elsewhere",
    "sentinel": "sentinel",
}
INK, FRONT, GREY, PREVIEW = "#1f2933", "#334e68", "#829ab1", "#7b3fa0"
# A method has one colour and marker in every sweep. Okabe and Ito's colours can be told apart with colour blindness.
_LOOKS = {
    "sft": (INK, "*"),
    "sentinel": (GREY, "d"),
    "one-step": ("#0072B2", "o"),
    "sacpo": ("#D55E00", "s"),
    "p-sacpo": ("#009E73", "D"),
    "naive-merge": ("#CC79A7", "^"),
    "logit-mix": ("#56B4E9", "v"),
    "served": ("#E69F00", "P"),
}
_OTHER_LOOKS = (("#6A3D9A", "X"), ("#8C564B", "<"))
"""Of methods that are not named above."""
REFERENCES = ("sft", "served", "sentinel")
"""Methods that belong to no series of policies."""
_GROUP = ["method", "chain", "combination"]
_LIGHTER = 0.35  # how much lighter each further chain of a method is drawn


@dataclass(frozen=True)
class Series:
    """The trials of one method, chain and kind of merge.

    Attributes:
        name: Name for the legend.
        colour: Hexadecimal RGB.
        marker: The marker, as matplotlib names it.
        runs: The rows along lambda or q, for each beta and seed; a line joins the points of a run.
    """

    name: str
    colour: str
    marker: str
    runs: list[pd.DataFrame]


def all_series(rows: pd.DataFrame) -> list[Series]:
    """Group trials by method, chain and kind of merge. A method has one colour and marker, lighter for further groups.

    Within a group, trials with another beta, seed or (for merges) beta/lambda are separate runs, so that along a line
    only lambda or q varies.
    """
    series = []
    chains: dict[str, int] = {}
    if "combination" not in rows:  # tables of an earlier version
        rows = rows.assign(combination="")
    rows = rows.assign(**{name: rows[name].fillna("").astype(str) for name in _GROUP})
    for key, group in rows.groupby(_GROUP, sort=False):
        method, chain, combination = map(str, key)
        fixed = ["beta", "seed", "beta_over_lambda"] if group["q"].notna().any() else ["beta", "seed"]
        fixed = ["trial_id"] if method in REFERENCES else fixed
        runs = [run.sort_values(["lambda", "q"]) for _, run in group.groupby(fixed, dropna=False)]
        title = METHOD_NAMES.get(method, method)
        if combination not in ("", LINEAR.text):
            title += f" by {combination}"
        name = f"{title}: {chain.replace('>', ' → ')}" if chain else title
        colour, marker = look(method)
        number = chains[method] = chains.get(method, -1) + 1
        series.append(Series(name, lighter(colour, number), marker, runs))
    return series


def look(method: str) -> tuple[str, str]:
    """Colour and marker of a method, the same in every sweep."""
    return _LOOKS.get(method) or _OTHER_LOOKS[zlib.crc32(method.encode()) % len(_OTHER_LOOKS)]


def lighter(colour: str, times: int) -> str:
    """A colour mixed with white, so many times."""
    share = (1 - _LIGHTER) ** times
    return "#" + "".join(f"{round(255 - share * (255 - int(colour[i : i + 2], 16))):02x}" for i in (1, 3, 5))


def point_label(row: Mapping[Any, Any]) -> str:
    """The setting that varies within the trial's series: q, lambda or beta; else the whole label."""
    if row["method"] in REFERENCES:
        return "SFT" if row["method"] == "sft" else str(row["label"])
    for name, column in (("q", "q"), ("λ", "lambda")):
        if (value := finite_or_none(row[column])) is not None:
            return f"{name}={value:.3g}"
    beta = finite_or_none(row["beta"]) if row["method"] == "one-step" else None
    return str(row["label"]) if beta is None else f"β={beta:g}"


def text_colour(colour: str) -> str:
    """A darker shade of a marker's colour, for letters, whose strokes are thin."""
    return "#" + "".join(f"{int(int(colour[i : i + 2], 16) * 0.72):02x}" for i in (1, 3, 5))


def drawn(trials: pd.DataFrame, columns: tuple[str, str]) -> pd.DataFrame:
    """The trials that can be drawn in a plane: done, with both numbers. `on_front` becomes a plain bool."""
    rows = trials[(trials["status"] == "done") & trials[list(columns)].notna().all(axis=1)]
    return rows.assign(on_front=rows["on_front"].eq(True).fillna(False).astype(bool))


def front_points(trials: pd.DataFrame) -> list[tuple[float, float]]:
    """The distinct points of the front in the plane of win rates, from left to right (thus from top to bottom)."""
    rows = drawn(trials, WIN_RATES)
    return sorted({(float(x), float(y)) for x, y in rows.loc[rows["on_front"], list(WIN_RATES)].to_numpy()})


def optima(trials: pd.DataFrame, exact: pd.DataFrame) -> list[dict[str, float]]:
    """The exact optima at the lambdas of the trials, interpolated on the dense grid.

    In the grid lambda is the weight of harmlessness relative to helpfulness. Only the chains that align on helpfulness
    first and on harmlessness second have a lambda of this meaning.

    Returns:
        beta, lambda, expected_reward and expected_safety of each; a lambda outside the grid is left out.
    """
    in_grid_order = trials["chain"].fillna("").map(chain_objectives).map(lambda objectives: objectives == CRITERIA)
    rows = trials[in_grid_order & trials["lambda"].notna()]
    pairs = {(float(beta), float(value)) for beta, value in rows[["beta", "lambda"]].to_numpy()}
    marks = []
    for beta, value in sorted(pairs):
        grid = exact[np.isclose(exact["beta"], beta)].sort_values("lambda")
        if len(grid) and grid["lambda"].iloc[0] <= value <= grid["lambda"].iloc[-1]:
            point = {axis: float(np.interp(value, grid["lambda"], grid[axis])) for axis in GOLD}
            marks.append({"beta": beta, "lambda": value, **point})
    return marks


def bars(rows: pd.DataFrame, column: str) -> tuple[list[float], list[float]] | None:
    """Lengths of the error bars below and above each value; None if the column has no intervals."""
    if f"{column}_low" not in rows:
        return None
    below, above = rows[column] - rows[f"{column}_low"], rows[f"{column}_high"] - rows[column]
    return below.fillna(0.0).clip(lower=0).tolist(), above.fillna(0.0).clip(lower=0).tolist()


def prompt_counts(verdicts: pd.DataFrame) -> dict[str, int]:
    """Number of prompts of each axis that were judged."""
    counts = verdicts.groupby("criterion")["prompt_id"].nunique()
    return {criterion: int(counts[criterion]) for criterion in WIN_RATES if criterion in counts}


def counts_text(verdicts: pd.DataFrame) -> str:
    """The numbers of prompts for a caption, such as `83 prompts (helpfulness), 129 (harmlessness)`."""
    counts = prompt_counts(verdicts)
    return ", ".join(f"{n}{' prompts' if i == 0 else ''} ({name})" for i, (name, n) in enumerate(counts.items()))


Points = list[list[float]]
_MARKED = 6  # points of a preview that show their intervals; bands of several paths would hide each other


def interval_points(count: int) -> list[int]:
    """The points of a preview, among so many, that show their intervals."""
    return sorted({round(i * (count - 1) / (_MARKED - 1)) for i in range(_MARKED)})


def preview_paths(preview: pd.DataFrame | None, columns: tuple[str, str]) -> list[tuple[str, Points, Points, Points]]:
    """Each path of the table `preview` that has numbers in these columns.

    Returns:
        Name for the legend; its points along lambda; and for each point the lower and the upper 95 % bounds.
    """
    if preview is None or not {*columns} <= {*preview.columns}:
        return []
    paths = []
    for _, rows in preview.dropna(subset=[*columns]).groupby("second_id", sort=False):
        chain = str(rows["chain"].iloc[0]).replace(">", " → ")
        name = f"preview: {chain}, β={rows['beta'].iloc[0]:g}, λ up to {rows['lambda'].max():g}"
        line, low, high = (
            rows[[column + end for column in columns]].to_numpy(dtype=float).tolist() for end in ("", "_low", "_high")
        )
        paths.append((name, line, low, high))
    return paths
