"""Tests whether the mean of scores in [0, 1] is above a bound, valid for any distribution and any number of prompts.

The test bets against the hypothesis that the mean is at most the bound (Waudby-Smith and Ramdas 2024, Estimating means
of bounded random variables by betting, JRSS B 86): a wealth of 1 is multiplied, prompt by prompt, by
1 + bet x (score - bound). The bet on a prompt rests on earlier prompts alone, so the wealth is a supermartingale if the
hypothesis is true, and it reaches 1 / (1 - confidence) with probability 1 - confidence at most (Ville's inequality).
Bets are those that would reach this wealth by the last prompt (Voracek and Orabona 2025, STaR-Bets, arXiv 2505.22422).
The order of the prompts must not depend on the scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from sacpo.statistics.win_rate import SEED

GRID = np.arange(1, 1000) / 1000
"""The bounds that `lower_bounds` tries."""
_LARGEST_STAKE = 0.99  # share of the wealth that a score of 0 may lose
_SAMPLES = 1000  # of which a share must succeed for a number of prompts to be enough
_CHUNK = 2**16  # pairs of a column and a bound that are tested at the same time


def is_above(scores: ArrayLike, bounds: ArrayLike, confidence: float) -> NDArray[np.bool_]:
    """Whether each column's mean is shown to be above each bound.

    Args:
        scores: Shape (prompts, columns), each in [0, 1], in an order that does not depend on the scores.
        bounds: Shape (m,), each in (0, 1).
        confidence: In (0, 1). A column whose mean is at most a bound is shown to be above it with probability
            1 - confidence at most.

    Returns:
        Shape (columns, m).

    Raises:
        ValueError: The scores are not a matrix, or one is outside [0, 1] or missing.
    """
    matrix, limits = np.asarray(scores, dtype=np.float64), np.asarray(bounds, dtype=np.float64)
    if matrix.ndim != 2 or not ((matrix >= 0) & (matrix <= 1)).all():
        raise ValueError("scores must be a matrix (prompts, columns) of numbers from 0 to 1")
    n, columns = matrix.shape
    target = -np.log1p(-confidence)
    wealth = np.zeros((columns, limits.size))  # its logarithm
    largest = _LARGEST_STAKE / limits
    # Sums of scores and of squared deviations, as if a prompt with a fair coin's mean and variance came before.
    total, squares = np.full((columns, 1), 0.5), np.full((columns, 1), 0.25)
    is_shown = np.zeros(wealth.shape, dtype=bool)
    for i, row in enumerate(matrix[:, :, None]):
        bet = np.sqrt(2 * np.maximum(target - wealth, 0) * (i + 1) / ((n - i) * np.maximum(squares, 1e-9)))
        wealth += np.log1p(np.minimum(bet, largest) * (row - limits))
        is_shown |= wealth >= target
        total += row
        squares += (row - total / (i + 2)) ** 2
    return is_shown


def lower_bounds(scores: ArrayLike, confidence: float) -> NDArray[np.float64]:
    """Lower bound of each column's mean: the largest bound of `GRID` up to which all are exceeded.

    Args:
        scores: As in `is_above`.
        confidence: Probability with which a bound is at most the mean, for each column by itself.

    Returns:
        Shape (columns,), in [0, 1); 0 where nothing is shown.

    Raises:
        ValueError: As `is_above`.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    width = max(1, _CHUNK // GRID.size)
    parts = [is_above(matrix[:, start : start + width], GRID, confidence) for start in range(0, matrix.shape[1], width)]
    shown = np.concatenate(parts) if parts else np.empty((0, GRID.size), dtype=bool)
    count = np.logical_and.accumulate(shown, axis=1).sum(axis=1)
    bounds: NDArray[np.float64] = np.concatenate([[0.0], GRID])[count]
    return bounds


def upper_bounds(scores: ArrayLike, confidence: float) -> NDArray[np.float64]:
    """Upper bound of each column's mean, by symmetry; as `lower_bounds`."""
    bounds: NDArray[np.float64] = 1 - lower_bounds(1 - np.asarray(scores, dtype=np.float64), confidence)
    return bounds


def prompts_needed(
    scores: ArrayLike, bound: float, confidence: float, power: float = 0.8, most: int = 10_000
) -> int | None:
    """Number of prompts with which a mean is shown to be above a bound, if scores go on as they are so far.

    Samples of the number of prompts are drawn from the scores; the number is the smallest with which the test succeeds
    in this share of 1,000 samples, with one standard error to spare.

    Args:
        scores: Shape (prompts,), each in [0, 1].
        bound: In (0, 1).
        confidence: In (0, 1).
        power: Share of the samples that must succeed, in (0, 1).
        most: The largest number that is tried.

    Returns:
        The number, more than there are scores; None if the mean is not above the bound, or if about `most` are too few.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not values.size or values.mean() <= bound:
        return None

    def is_enough(n: int) -> bool:
        samples = np.random.default_rng(SEED).choice(values, (n, _SAMPLES))
        return bool(is_above(samples, [bound], confidence).mean() >= power + (power * (1 - power) / _SAMPLES) ** 0.5)

    low, high = values.size, 2 * values.size
    while not is_enough(high):
        low, high = high, 2 * high
        if low >= most:
            return None
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def share_upper_bound(count: int, n: int, confidence: float) -> float:
    """Upper bound of a probability of which `count` of n independent cases are seen (Clopper and Pearson 1934)."""
    return 1.0 if count >= n else float(beta.ppf(confidence, count + 1, n - count))
