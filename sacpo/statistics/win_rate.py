"""Win rates against a baseline and their differences, with intervals that respect what was sampled: prompts.

A matrix of prompt means has the shape (prompts, columns): the mean score of a prompt's decided verdicts, one column a
trial and criterion, NaN where the prompt has none. All columns see the same resamples, so what is compared is paired.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, norm, t

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0
IN_MEMORY = 2**22  # numbers in one array of the bootstrap: 32 MiB

Ids = Sequence[object] | NDArray[np.generic]
_Bounds = Callable[[float, int], tuple[float, float]]  # of n prompts that all have one value


@dataclass(frozen=True)
class Estimate:
    """A win rate, or a difference of two, with its interval.

    Attributes:
        value: Share won, ties counted half, in [0, 1]; a difference of shares in [-1, 1].
        low: Lower bound of the interval, within the value's range.
        high: Upper bound of the interval, within the value's range.
        n_prompts: Number of prompts that had at least one decided verdict; for a difference, one on both sides.
    """

    value: float
    low: float
    high: float
    n_prompts: int


def prompt_means(scores: ArrayLike, prompts: Ids) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """Average decided verdicts within each prompt.

    Args:
        scores: Shape (n,), one entry per decided verdict: 1.0 win, 0.5 tie, 0.0 loss. Failed calls are left out.
        prompts: Length n, the prompt id of each verdict (ids of one type).

    Returns:
        The distinct prompt ids, sorted, and the mean score of each; both of shape (prompts,).

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
    distinct, index = np.unique(ids, return_inverse=True)
    return distinct, np.bincount(index, weights=values) / np.bincount(index)


def win_rate(scores: ArrayLike, prompts: Ids) -> Estimate:
    """Estimate a win rate from decided verdicts: `estimates` of the one column of `prompt_means`.

    Args:
        scores: Shape (n,), one entry per decided verdict: 1.0 win, 0.5 tie, 0.0 loss. Failed calls are left out.
        prompts: Length n, the prompt id of each verdict (ids of one type).

    Returns:
        The mean over prompts of the prompt's mean score, with its 95 % interval. The same whatever the verdicts' order.

    Raises:
        ValueError: There is no verdict, a score is none of the three, or the lengths differ.
    """
    return estimates(prompt_means(scores, prompts)[1][:, None])[0]


def estimates(means: ArrayLike, confidence: float = CONFIDENCE) -> list[Estimate]:
    """Estimate the win rate of every column.

    The prompt is the unit of sampling: verdicts on one prompt (both orders, repeats) share its difficulty, so each
    prompt counts once, by its mean score, and the bootstrap resamples prompts. BCa (Efron 1987) is used since win
    rates near 0 or 1 are skewed and percentile bounds then sit too far towards the end of the scale, at the level of
    `resample_level`, without which few prompts are covered too seldom. Where all prompts have one score there is
    nothing to resample, and Wilson's score bounds (1927) for that share of n stand in.

    Args:
        means: Shape (prompts, columns), a matrix of prompt means.
        confidence: Nominal coverage of each interval.

    Returns:
        One estimate a column, over the column's own prompts; all NaN with 0 prompts for a column that has none.

    Raises:
        ValueError: The array is no matrix, or a mean is outside [0, 1].
    """
    matrix = matrix_of(means)
    quantile = float(norm.ppf((1 + confidence) / 2))
    return _intervals(matrix, "BCa", confidence, lambda value, n: wilson(value, n, quantile))


def differences(means: ArrayLike, pairs: Sequence[tuple[int, int]], confidence: float = CONFIDENCE) -> list[Estimate]:
    """Estimate differences of win rates on the prompts that both have: paired, so shared difficulty cancels.

    Percentile bounds at the level of `resample_level`: differences are near symmetric, and there BCa's correction adds
    more noise than it takes away (91 % coverage at 83 prompts). Where all n prompts have one difference, the bounds are
    it -/+ `unseen_share`, as if each prompt of that share differed by a whole win.

    Args:
        means: Shape (prompts, columns), a matrix of prompt means.
        pairs: Columns (i, j); the difference is column i minus column j.
        confidence: Nominal coverage of each interval.

    Returns:
        One estimate a pair, in [-1, 1]; all NaN with 0 prompts where no prompt has both.

    Raises:
        ValueError: The array is no matrix, or a mean is outside [0, 1].
        IndexError: A pair names a column that is not there.
    """
    matrix = matrix_of(means)
    if not pairs:
        return []

    def constant(value: float, n: int) -> tuple[float, float]:
        half = unseen_share(n, confidence)
        return max(-1.0, value - half), min(1.0, value + half)

    left, right = np.transpose(pairs)
    return _intervals(matrix[:, left] - matrix[:, right], "percentile", confidence, constant)


def wilson(value: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's score bounds (1927) for a share of n, at a quantile of the normal: of positive width at 0 and 1 too."""
    centre = (value + quantile**2 / (2 * n)) / (1 + quantile**2 / n)
    half = quantile / (1 + quantile**2 / n) * float(np.sqrt(value * (1 - value) / n + quantile**2 / (4 * n**2)))
    return max(0.0, centre - half), min(1.0, centre + half)


def unseen_share(n: int, confidence: float = CONFIDENCE) -> float:
    """The largest share of prompts of which none comes among n with at least (1 - confidence) / 2 probability.

    That is 1 - 0.025^(1/n) at 95 %, Clopper and Pearson's upper bound (1934) for none of n.
    """
    return float(1 - ((1 - confidence) / 2) ** (1 / n))


def resample_level(n: int, confidence: float = CONFIDENCE) -> float:
    """The level of bootstrap bounds over n prompts that cover a mean as often as `confidence` says.

    Resamples vary by (n - 1) / n too little, and their percentiles are a normal's where Student's t is due. Hesterberg
    (2015, What Teachers Should Know About the Bootstrap, The American Statistician 69) expands percentiles by both.
    """
    if n < 2:
        return confidence
    quantile = np.sqrt(n / (n - 1)) * t.ppf((1 + confidence) / 2, n - 1)
    # Of so many resamples, bounds further out than the extremes cannot be told.
    return min(float(1 - 2 * norm.sf(quantile)), 1 - 1 / RESAMPLES)


def resample_counts(n: int) -> NDArray[np.float64]:
    """How often each of n prompts comes in each resample, for statistics of sums over prompts: (RESAMPLES, n)."""
    return np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)


def matrix_of(means: ArrayLike) -> NDArray[np.float64]:
    """Check a matrix of prompt means.

    Raises:
        ValueError: It is no matrix, or a mean is outside [0, 1].
    """
    matrix = np.asarray(means, dtype=np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"prompt means must have the shape (prompts, columns), not {matrix.shape}")
    if (matrix < 0).any() or (matrix > 1).any():  # NaN is neither
        raise ValueError("prompt means must be within 0 and 1")
    return matrix


def _intervals(
    columns: NDArray[np.float64], method: Literal["BCa", "percentile"], confidence: float, constant: _Bounds
) -> list[Estimate]:
    """Each column's mean over the rows where it is a number; columns that lack the same rows are resampled together."""
    found = [Estimate(float("nan"), float("nan"), float("nan"), 0)] * columns.shape[1]
    if columns.size == 0:
        return found
    patterns, group = np.unique(~np.isnan(columns), axis=1, return_inverse=True)
    at_a_time = max(1, IN_MEMORY // max(RESAMPLES, len(columns)))
    for number, rows in enumerate(patterns.T):
        members = np.flatnonzero(group == number)
        for part in np.split(members, range(at_a_time, len(members), at_a_time)) if rows.any() else []:
            done = _complete(columns[np.ix_(rows, part)], method, confidence, constant)
            for column, estimate in zip(part, done, strict=True):
                found[column] = estimate
    return found


def _complete(
    columns: NDArray[np.float64], method: Literal["BCa", "percentile"], confidence: float, constant: _Bounds
) -> list[Estimate]:
    """The like of `_intervals` for columns without a NaN."""
    n = len(columns)
    values = columns.mean(axis=0)
    low, high = np.array([constant(float(value), n) for value in values]).T
    varies = np.ptp(columns, axis=0) > 1e-9  # differences that are equal may differ in their last bits
    if varies.any():
        # Sums of multiples of 2^-30 are exact in any order, so a column's bounds do not depend on what is beside it.
        exact = np.round(columns[:, varies] * 2**30) / 2**30

        def means_of(rows: NDArray[np.int_], axis: int) -> NDArray[np.float64]:
            """Each column's mean over resampled rows (..., m): how often each row came makes it one matrix product."""
            resamples = rows.reshape(-1, rows.shape[axis]).astype(np.intp)
            apart = resamples + n * np.arange(len(resamples))[:, None]
            counts = np.bincount(apart.ravel(), minlength=n * len(resamples)).reshape(-1, n)
            return np.reshape(exact.T @ counts.T.astype(np.float64) / rows.shape[axis], (-1, *rows.shape[:-1]))

        interval = bootstrap(
            (np.arange(n),),
            means_of,
            n_resamples=RESAMPLES,
            batch=max(1, IN_MEMORY // n),
            confidence_level=resample_level(n, confidence),
            method=method,
            rng=SEED,
        ).confidence_interval
        low[varies], high[varies] = interval.low, interval.high
    # Bounds on the value too: rounding must not push it out of its own interval.
    low, high = np.minimum(low, values), np.maximum(high, values)
    return [Estimate(float(v), float(a), float(b), n) for v, a, b in zip(values, low, high, strict=True)]
