"""Calibration of a reward model: what a difference of scores says about who is preferred."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import expit

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Held-out pairs whose stated probability fell into one tenth: their mean probability, share won, and number."""

    probability: float
    share: float
    n: int


@dataclass(frozen=True)
class Calibration:
    """How far P(win) = sigmoid(difference / temperature) can be believed.

    Attributes:
        temperature: Fitted by likelihood (Guo et al. 2017); above 1 where the model is too sure of itself.
        error: Expected calibration error at that temperature: mean distance of share and probability over the bins.
        error_before: The same at temperature 1.
        bins: The reliability diagram at the fitted temperature.
    """

    temperature: float
    error: float
    error_before: float
    bins: list[Bin]


def calibrate(margins: ArrayLike) -> Calibration:
    """Fit the temperature on held-out pairs.

    Args:
        margins: Shape (n,), score of the preferred answer minus score of the other one.

    Raises:
        ValueError: there is no margin.
    """
    differences = np.asarray(margins, dtype=np.float64)
    if differences.size == 0:
        raise ValueError("calibration needs at least one held-out pair")
    scale = float(np.abs(differences).mean()) or 1.0

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -differences / (scale * np.exp(log_temperature))).mean())

    # In units of the mean difference: where all pairs are right the best temperature is 0, where half are wrong it has
    # no bound, and then the end of the range is taken.
    temperature = scale * float(np.exp(minimize_scalar(loss, bounds=(-3.0, 5.0), method="bounded").x))
    bins = _reliability(differences, temperature)
    return Calibration(temperature, _error(bins), _error(_reliability(differences, 1.0)), bins)


def _reliability(differences: np.ndarray[tuple[int], np.dtype[np.float64]], temperature: float) -> list[Bin]:
    # Each pair is looked at from both sides, so that the diagram does not hang on which answer is named first.
    probability = expit(np.concatenate([differences, -differences]) / temperature)
    won = np.concatenate([np.ones_like(differences), np.zeros_like(differences)])
    places = np.minimum((probability * BINS).astype(int), BINS - 1)
    return [
        Bin(float(probability[places == i].mean()), float(won[places == i].mean()), int((places == i).sum()))
        for i in range(BINS)
        if (places == i).any()
    ]


def _error(bins: list[Bin]) -> float:
    total = sum(part.n for part in bins)
    return sum(part.n * abs(part.share - part.probability) for part in bins) / total
