"""The training curves of all stages as a picture."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sacpo.errors import SacpoError
from sacpo.reporting.new_axes import add_legend, axes_or_new, fix_layout, plain
from sacpo.reporting.series import INK, lighter, look

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sacpo.results.load import Results

_PANELS = {
    "loss": "loss",
    "sft_loss": "loss of SFT, nats per token",
    "reward_accuracy": "share of examples with a higher implicit reward of the chosen response",
    "margin": "margin: chosen minus rejected log-probability ratio, nats",
    "chosen_logp_change": "change of the chosen responses' log-probability, nats",
    "kl": "KTO's estimate of the KL divergence, nats",
}
_LEGEND_ROWS = 16  # more stages than these are drawn without names
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
_MARKERS = 8  # on each line, so that stages of one colour can be told apart


def plot_training(results: Results, ax: Axes | None = None, column: str = "loss", *, legend: bool = True) -> Axes:
    """A training curve of every stage over its updates.

    A stage has the colour and marker of the policy that it trains, as in the picture of the front; stages of one chain
    differ in their dashes.

    Args:
        results: The tables.
        ax: Where; None: in a figure of its own, by pyplot.
        column: A number of the table `curves`; a stage whose method does not log it has no line.
        legend: Whether the axes get a legend; below them in a figure of their own.

    Raises:
        SacpoError: nothing was trained, or the table has no such column.
    """
    curves = results.comparisons.get("curves")
    if curves is None or curves.empty:
        raise SacpoError("these results have no training curves: no stage was trained, or the sweep has not ended")
    known = [name for name in curves.columns if name not in ("step_id", "label", "update")]
    if column not in known:
        raise SacpoError(f"column {column!r}: the table `curves` has {', '.join(known)}")
    axes = axes_or_new(ax, (7.2, 5.4))
    _draw_stages(axes, curves, column)
    if legend:
        add_legend(axes, is_new=ax is None)
    return axes


def draw_curves(curves: pd.DataFrame) -> Figure:
    """Draw loss, accuracy, margin, the chosen responses' likelihood and the KL divergence over the updates.

    Each stage is one line. Values that no stage logs have no panel; the loss of SFT has one of its own, since it is
    much larger than that of the other stages.

    Args:
        curves: The table `curves` of a results folder, not empty.

    Returns:
        The figure; as a PNG it is 1600 pixels wide.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    is_sft = curves["margin"].isna() & curves["token_accuracy"].notna()
    curves = curves.assign(loss=curves["loss"].mask(is_sft), sft_loss=curves["loss"].where(is_sft))
    panels = [column for column in _PANELS if curves[column].notna().any()]
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(12.8, 4.2 * rows), dpi=125, layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False).flat
    for column, axes in zip(panels, grid, strict=False):
        _draw_stages(axes, curves, column)
    for axes in grid:  # the last one, where the number of panels is odd
        axes.set_axis_off()
    styles = [style for _, style in _stages(curves)]
    if len(styles) <= _LEGEND_ROWS:
        handles = [Line2D([], [], **style, linewidth=1.2, markersize=5) for style in styles]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8, handlelength=5)
    fix_layout(figure)
    return figure


def _draw_stages(axes: Axes, curves: pd.DataFrame, column: str) -> None:
    for stage, style in _stages(curves):
        if stage[column].notna().any():
            every = max(1, len(stage) // _MARKERS)
            axes.plot(stage["update"], stage[column], **style, linewidth=1.2, markersize=5, markevery=every)
    if column == "chosen_logp_change":
        axes.axhline(0, color=INK, linewidth=0.7, linestyle=(0, (5, 4)))
    axes.set_title(_PANELS.get(column, column), loc="left", fontsize=10, color=INK)
    axes.set_xlabel("update", fontsize=9)
    plain(axes)


def _stages(curves: pd.DataFrame) -> list[tuple[pd.DataFrame, dict[str, Any]]]:
    """The rows of each stage, and how its line is drawn."""
    stages = [rows for _, rows in curves.groupby("step_id", sort=False)]
    return list(zip(stages, _styles([str(rows["label"].iloc[0]) for rows in stages]), strict=True))


def _styles(labels: list[str]) -> list[dict[str, Any]]:
    """Name, colour, marker and dashes of each stage, from the labels of the training steps."""
    chains: dict[str, list[str]] = {}  # method to its chains; further ones are lighter
    numbers: dict[str, int] = {}  # stages of each chain so far
    styles: list[dict[str, Any]] = []
    for label in labels:
        name = label.removeprefix("train ")
        chain = re.sub(r"@[^>\s]+| seed \d+", "", name)
        judge = "judge" if chain.startswith("judge ") else chain
        method = "sacpo" if ">" in chain else "one-step" if ":" in chain else judge
        known = chains.setdefault(method, [])
        known += [chain] * (chain not in known)
        number = numbers[chain] = numbers.get(chain, -1) + 1
        colour, marker = look(method)
        shade = lighter(colour, known.index(chain))
        dashes = _DASHES[number % len(_DASHES)]
        styles.append({"label": name, "color": shade, "marker": marker, "linestyle": dashes, "markeredgewidth": 0.0})
    return styles
