"""Calibration of a reward model: temperature scaling from differences of scores to probabilities of preference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit

from sacpo.statistics.win_rate import CONFIDENCE, MAX_ARRAY_SIZE, RESAMPLES, SEED

Array = NDArray[np.float64]

SMALLEST_SAMPLE = 30
"""Fewest held-out pairs to which the temperature of a trained judge is fitted."""
BINS = 10
"""Number of bins of equal width in a reliability diagram."""


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram.

    Attributes:
        probability: Mean predicted probability of winning.
        share: Fraction that won.
        n: Number of predictions in the bin; each held-out pair gives two.
    """

    probability: float
    share: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """Calibration of P(win) = sigmoid(difference / temperature).

    Attributes:
        temperature: Maximum-likelihood estimate (Guo et al. 2017); above 1 if the model is overconfident; 1 if
            there are too few pairs to fit it.
        error: Expected calibration error at that temperature: the mean over predictions of the distance between their
            bin's fraction won and its mean probability.
        error_before: Expected calibration error at temperature 1.
        bins: The reliability diagram at that temperature, without empty bins.
        fitted: Whether there were pairs enough to fit the temperature.
        error_low, error_high: 95 % interval of `error`.
    """

    temperature: float
    error: float
    error_before: float
    bins: list[Bin]
    fitted: bool = True
    error_low: float = 0.0
    error_high: float = 1.0


def calibrate(margins: ArrayLike, smallest_sample: int = 1) -> Calibration:
    """Fit the temperature on held-out pairs.

    Args:
        margins: Shape (n,), score of the preferred answer minus score of the other answer.
        smallest_sample: Fewest pairs to which a temperature is fitted; with fewer it is 1.

    Returns:
        The temperature, and the calibration error on the same pairs.

    Raises:
        ValueError: There is no margin.
    """
    differences = np.asarray(margins, dtype=np.float64)
    if differences.size == 0:
        raise ValueError("calibration needs at least one held-out pair")
    if differences.size < smallest_sample:
        bins = _reliability(differences, 1.0)
        error = _expected_error(bins)
        return Calibration(1.0, error, error, bins, False, *_error_bounds(differences, 1.0, error))
    scale = float(np.abs(differences).mean()) or 1.0

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -differences / (scale * np.exp(log_temperature))).mean())

    # The search is in units of the mean difference. If all pairs are right, the best temperature is 0; if half of them
    # are wrong, it is infinite. The result is then the end of the range.
    temperature = scale * float(np.exp(minimize_scalar(loss, bounds=(-3.0, 5.0), method="bounded").x))
    bins = _reliability(differences, temperature)
    error, before = _expected_error(bins), _expected_error(_reliability(differences, 1.0))
    return Calibration(temperature, error, before, bins, True, *_error_bounds(differences, temperature, error))


def _reliability(differences: Array, temperature: float) -> list[Bin]:
    """The reliability diagram at a temperature."""
    probability, won, bin_index = _predictions(differences, temperature)
    bins = []
    for i in range(BINS):
        members = bin_index == i
        if members.any():
            bins.append(Bin(float(probability[members].mean()), float(won[members].mean()), int(members.sum())))
    return bins


def _predictions(differences: Array, temperature: float) -> tuple[Array, Array, NDArray[np.intp]]:
    """Predicted probability, outcome and bin. Each pair enters with both signs: neither answer is the first."""
    probability = expit(np.concatenate([differences, -differences]) / temperature)
    won = np.concatenate([np.ones_like(differences), np.zeros_like(differences)])
    return probability, won, np.minimum((probability * BINS).astype(np.intp), BINS - 1)


def _error_bounds(differences: Array, temperature: float, error: float) -> tuple[float, float]:
    """95 % interval of the expected calibration error.

    A mean of distances is too large in a sample, and in its resamples once more; the basic bootstrap over pairs takes
    that off (Davison and Hinkley 1997). The lower bound is 0 where a calibrated model would have such an error too, by
    outcomes drawn from its own probabilities (Broecker and Smith 2007, consistency resampling).
    """
    n = differences.size
    gaps = _gaps(differences, temperature)
    right, wrong = _gaps(np.abs(differences), temperature), _gaps(-np.abs(differences), temperature)
    is_right = expit(np.abs(differences) / temperature)
    generator = np.random.default_rng(SEED)
    resampled, calibrated = np.empty(RESAMPLES), np.empty(RESAMPLES)
    rows = max(1, MAX_ARRAY_SIZE // n)
    for part in (slice(start, min(start + rows, RESAMPLES)) for start in range(0, RESAMPLES, rows)):
        count = part.stop - part.start
        drawn = generator.integers(0, n, (count, n)) + n * np.arange(count)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        resampled[part] = np.abs(counts.astype(float) @ gaps).sum(axis=1) / (2 * n)
        won = (generator.random((count, n)) < is_right).astype(float)
        calibrated[part] = np.abs(won @ (right - wrong) + wrong.sum(axis=0)).sum(axis=1) / (2 * n)
    tail = (1 - CONFIDENCE) / 2
    low, high = 2 * error - np.quantile(resampled, [1 - tail, tail])
    if error <= np.quantile(calibrated, 1 - tail):
        low = 0.0
    return float(np.clip(low, 0.0, error)), float(np.clip(high, error, 1.0))


def _gaps(differences: Array, temperature: float) -> Array:
    """Each pair's part of the bins' differences of outcome and probability, shape (pairs, BINS)."""
    probability, won, bin_index = _predictions(differences, temperature)
    gaps = np.zeros((differences.size, BINS))
    np.add.at(gaps, (np.tile(np.arange(differences.size), 2), bin_index), won - probability)
    return gaps


def _expected_error(bins: list[Bin]) -> float:
    """Expected calibration error of a reliability diagram."""
    total = sum(part.n for part in bins)
    return sum(part.n * abs(part.share - part.probability) for part in bins) / total
