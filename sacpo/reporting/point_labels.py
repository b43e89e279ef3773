"""Labels of points that touch neither each other nor a marker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

Label = tuple[float, float, str, str]
"""x and y of the point in data units, text, colour."""


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
