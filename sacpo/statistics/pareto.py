"""Dominance in the plane. Both coordinates are maximised."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def on_front(points: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    A point dominates another when it is at least as good on both axes and better on one. Copies of a front point are
    therefore all on the front.

    Args:
        points: Shape (n, 2). A row with a NaN is never on the front and dominates nothing.

    Returns:
        Shape (n,), True on the front.

    Raises:
        ValueError: The shape is not (n, 2).
    """
    xy = _plane(points)
    # Every comparison with NaN is False, so such rows dominate nothing; they are taken off the front at the end.
    no_worse = (xy[:, None, :] >= xy[None, :, :]).all(axis=2)
    better = (xy[:, None, :] > xy[None, :, :]).any(axis=2)
    dominated = (no_worse & better).any(axis=0)
    return np.asarray(~dominated & ~np.isnan(xy).any(axis=1), dtype=np.bool_)


def hypervolume(points: ArrayLike, reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """Measure the area that the points dominate above a reference point.

    Args:
        points: Shape (n, 2). A point that is not above the reference on both axes contributes nothing.
        reference: The corner from which the area is measured.

    Returns:
        The area, in the product of the axes' units; 0.0 without points.

    Raises:
        ValueError: The shape is not (n, 2), or a coordinate is NaN.
    """
    xy = _plane(points)
    if np.isnan(xy).any() or np.isnan(reference).any():
        raise ValueError("the hypervolume of NaN is not defined: leave failed trials out")
    above = xy[(xy > reference).all(axis=1)] - reference
    # From right to left, each point adds the strip by which it is higher than all points right of it.
    above = above[np.argsort(-above[:, 0], kind="stable")]
    tops = np.maximum.accumulate(above[:, 1])
    return float(np.sum(above[:, 0] * np.diff(tops, prepend=0.0)))


def _plane(points: ArrayLike) -> NDArray[np.float64]:
    xy = np.asarray(points, dtype=np.float64)
    if xy.size == 0:
        return np.empty((0, 2))
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"points must have the shape (n, 2), not {xy.shape}")
    return xy
