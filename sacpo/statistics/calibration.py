"""Calibration of a reward model: temperature scaling from differences of scores to probabilities of preference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import expit

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
    """

    temperature: float
    error: float
    error_before: float
    bins: list[Bin]
    fitted: bool = True


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
        return Calibration(1.0, _expected_error(bins), _expected_error(bins), bins, fitted=False)
    scale = float(np.abs(differences).mean()) or 1.0

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -differences / (scale * np.exp(log_temperature))).mean())

    # The search is in units of the mean difference. If all pairs are right, the best temperature is 0; if half of them
    # are wrong, it is infinite. The result is then the end of the range.
    temperature = scale * float(np.exp(minimize_scalar(loss, bounds=(-3.0, 5.0), method="bounded").x))
    bins = _reliability(differences, temperature)
    return Calibration(temperature, _expected_error(bins), _expected_error(_reliability(differences, 1.0)), bins)


def _reliability(differences: np.ndarray[tuple[int], np.dtype[np.float64]], temperature: float) -> list[Bin]:
    """The reliability diagram at a temperature."""
    # Each pair enters with both signs, so that the diagram does not depend on which answer comes first.
    probability = expit(np.concatenate([differences, -differences]) / temperature)
    won = np.concatenate([np.ones_like(differences), np.zeros_like(differences)])
    bin_index = np.minimum((probability * BINS).astype(int), BINS - 1)
    bins = []
    for i in range(BINS):
        members = bin_index == i
        if members.any():
            bins.append(Bin(float(probability[members].mean()), float(won[members].mean()), int(members.sum())))
    return bins


def _expected_error(bins: list[Bin]) -> float:
    """Expected calibration error of a reliability diagram."""
    total = sum(part.n for part in bins)
    return sum(part.n * abs(part.share - part.probability) for part in bins) / total
