"""The training curves of all stages as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sacpo.reporting.series import INK

if TYPE_CHECKING:
    import pandas as pd

_PANELS = {
    "loss": "loss",
    "reward_accuracy": "share of examples with a higher implicit reward of the chosen response",
    "margin": "margin: chosen minus rejected log-probability ratio, nats",
    "chosen_logp_change": "change of the chosen responses' log-probability, nats",
}
_LEGEND_ROWS = 16  # more stages than these are drawn without names


def draw_curves(curves: pd.DataFrame, path: Path) -> None:
    """Draw loss, accuracy, margin and the chosen responses' likelihood over the updates, one line for each stage.

    Args:
        curves: The table `curves` of a results folder, not empty.
        path: The PNG to write, 1600 pixels wide.
    """
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.8, 7.6), dpi=125, layout="constrained")
    stages = list(curves.groupby("step_id", sort=False))
    colours = matplotlib.colormaps["turbo"].resampled(len(stages) + 2)
    for axes, (column, title) in zip(figure.subplots(2, 2).flat, _PANELS.items(), strict=True):
        for number, (_, stage) in enumerate(stages):
            if stage[column].notna().any():
                axes.plot(stage["update"], stage[column], color=colours(number + 1), linewidth=1.1)
        if column == "chosen_logp_change":
            axes.axhline(0, color=INK, linewidth=0.7, linestyle=(0, (5, 4)))
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("update", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eef2f6", linewidth=0.8)
    names = [str(stage["label"].iloc[0]) for _, stage in stages]
    if len(names) <= _LEGEND_ROWS:
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=colours(number + 1), label=name) for number, name in enumerate(names)]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, format="png")
