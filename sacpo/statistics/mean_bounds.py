"""Bounds of the mean of scores without limits, such as a reward model's.

Unlike `sacpo.statistics.certificate`, which needs scores in [0, 1], no bound here holds for every distribution: the
confidence is reached as the number of prompts grows, later the heavier the tails are.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

from sacpo.statistics.win_rate import resample_counts

FEWEST_PROMPTS = 8
"""With fewer prompts nothing is shown."""


def mean_lower_bounds(scores: ArrayLike, confidence: float) -> NDArray[np.float64]:
    """Lower bound of each column's mean: the smaller of Student's bound and the bootstrap-t one.

    Student's is too high where scores are skewed to the left. The bootstrap-t bound follows the skewness (Efron and
    Tibshirani 1993, section 12.5); it divides each resample's distance from the mean by its own standard error.

    Args:
        scores: Shape (prompts, columns), mean score of each prompt.
        confidence: Probability with which a bound is at most the mean, for each column by itself.

    Returns:
        Shape (columns,); minus infinity with fewer than eight prompts, or if all scores of a column are equal, since
        nothing is then known of their spread.
    """
    matrix = np.asarray(scores, dtype=np.float64)
    n, columns = matrix.shape
    if n < FEWEST_PROMPTS:
        return np.full(columns, -np.inf)
    means, errors = matrix.mean(axis=0), matrix.std(axis=0, ddof=1) / np.sqrt(n)
    centred = matrix - means
    counts = resample_counts(n) / n
    shifts = counts @ centred
    variances = np.maximum(counts @ centred**2 - shifts**2, 0.0) / (n - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.nan_to_num(shifts / np.sqrt(variances), nan=0.0, posinf=np.inf, neginf=-np.inf)
    quantiles = np.maximum(np.quantile(ratios, confidence, axis=0, method="higher"), t.ppf(confidence, n - 1))
    bounds: NDArray[np.float64] = np.where(errors > 0, means - quantiles * errors, -np.inf)
    return bounds


def prompts_for_mean(scores: ArrayLike, bound: float, confidence: float, power: float = 0.8) -> int | None:
    """Number of prompts with which a mean is shown to be above a bound, by the normal approximation.

    Args:
        scores: Shape (prompts,).
        bound: The bound.
        confidence: In (0, 1).
        power: Probability of success if scores go on as they are so far.

    Returns:
        The number, more than there are scores; None if the mean is not above the bound.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size < 2 or values.mean() <= bound:
        return None
    effect = (values.mean() - bound) / max(float(values.std(ddof=1)), 1e-12)
    quantiles = float(norm.ppf(confidence) + norm.ppf(power))
    return max(math.ceil((quantiles / float(effect)) ** 2), values.size + 1, FEWEST_PROMPTS)
