"""Axes, legends and the layout that all plots share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def axes_or_new(ax: Axes | None, size: tuple[float, float] = (7.2, 6.4)) -> Axes:
    """The axes that a caller gave, or those of a new figure of this size in inches, which a notebook shows."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def add_legend(axes: Axes, *, is_new: bool, columns: int = 2) -> None:
    """A legend of what is named: below the axes in a figure of their own, else inside the axes.

    Below the axes it has fewer columns where it would be wider than the figure.
    """
    handles, names = axes.get_legend_handles_labels()
    if not names:
        return
    if is_new:
        figure = axes.figure.canvas.figure
        options: dict[str, Any] = {"loc": "outside lower center", "frameon": False, "fontsize": 8}
        legend = figure.legend(handles, names, ncols=columns, **options)
        while columns > 1 and legend.get_window_extent().width > figure.bbox.width:
            columns -= 1
            legend.remove()
            legend = figure.legend(handles, names, ncols=columns, **options)
    else:
        axes.legend(fontsize=7, framealpha=0.8)


def plain(axes: Axes) -> None:
    """A light grid, and no frame above and on the right."""
    axes.grid(color="#eef2f6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def fix_layout(figure: Figure) -> None:
    """Lay a figure out once; as long as it has a layout engine, it is laid out and drawn anew for each file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # measures all texts with one renderer; the plain canvas makes one for each text
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
