"""Pareto dominance between points in the plane, with both coordinates maximised."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def on_front(points: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    A point dominates another point if it is at least as good on both axes and better on one. Equal points do not
    dominate each other, so copies of a front point are all on the front.

    Args:
        points: Shape (n, 2). A row with a NaN is never on the front and dominates no point.

    Returns:
        Shape (n,), True on the front.

    Raises:
        ValueError: The shape is not (n, 2).
    """
    xy = np.asarray(points, dtype=np.float64)
    if xy.size == 0:
        xy = np.empty((0, 2))
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"points must have the shape (n, 2), not {xy.shape}")
    # Comparisons with NaN are False, so rows with a NaN dominate no point; the last line removes them from the front.
    no_worse = (xy[:, None, :] >= xy[None, :, :]).all(axis=2)
    better = (xy[:, None, :] > xy[None, :, :]).any(axis=2)
    dominated = (no_worse & better).any(axis=0)
    return np.asarray(~dominated & ~np.isnan(xy).any(axis=1), dtype=np.bool_)
