"""Win rates against a baseline, with intervals that respect what was sampled: prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, norm

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A win rate with its 95 % interval.

    Attributes:
        value: Share won, ties counted half, in [0, 1].
        low: Lower bound of the interval, in [0, 1].
        high: Upper bound of the interval, in [0, 1].
        n_prompts: Number of prompts that had at least one decided verdict.
    """

    value: float
    low: float
    high: float
    n_prompts: int


def win_rate(scores: ArrayLike, prompts: Sequence[object] | NDArray[np.generic]) -> Estimate:
    """Estimate a win rate from decided verdicts.

    The prompt is the unit of sampling: verdicts on one prompt (both orders, repeats) share its difficulty, so each
    prompt counts once, by its mean score, and the bootstrap resamples prompts. BCa (Efron 1987) is used since win
    rates near 0 or 1 are skewed and percentile bounds then sit too far towards the end of the scale.

    Args:
        scores: Shape (n,), one entry per decided verdict: 1.0 win, 0.5 tie, 0.0 loss. Failed calls are left out.
        prompts: Length n, the prompt id of each verdict (ids of one type).

    Returns:
        The mean over prompts of the prompt's mean score, with its 95 % interval. The same whatever the verdicts' order.

    Raises:
        ValueError: There is no verdict, a score is none of the three, or the lengths differ.
    """
    values = np.asarray(scores, dtype=np.float64)
    ids = np.asarray(prompts)
    if values.ndim != 1 or ids.shape != values.shape:
        raise ValueError(f"scores {values.shape} and prompts {ids.shape} must be two lists of one length")
    if values.size == 0:
        raise ValueError("a win rate needs at least one decided verdict")
    if not np.isin(values, (0.0, 0.5, 1.0)).all():
        raise ValueError("each score must be 1.0 (win), 0.5 (tie) or 0.0 (loss)")
    _, index = np.unique(ids, return_inverse=True)
    means = np.bincount(index, weights=values) / np.bincount(index)
    value = float(means.mean())
    if (means == means[0]).all():  # exact: sums of halves are, and division rounds correctly
        low, high = _wilson(value, means.size)
    else:
        interval = bootstrap(
            (means,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="BCa", rng=SEED
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    # Clipping on the value too: rounding in the bounds must not push it out of its own interval.
    return Estimate(value, max(0.0, min(low, value)), min(1.0, max(high, value)), int(means.size))


def _wilson(value: float, n: int) -> tuple[float, float]:
    """Wilson's score bounds for a share of n (Wilson 1927): of positive width even when all n agree."""
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    centre = (value + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * float(np.sqrt(value * (1 - value) / n + z**2 / (4 * n**2)))
    return centre - half, centre + half
