"""Bradley-Terry strengths of policies from comparisons of all pairs of policies."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from sacpo.statistics.win_rate import resample_counts, resample_level

PRIOR = 0.05
"""Wins added to every policy against every other policy, so that an undefeated policy has a finite strength."""

_MAX_ITERATIONS = 200
_TOLERANCE = 1e-9  # largest change of a log strength in the last iteration


def bradley_terry(
    wins: ArrayLike, baseline: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Estimate Bradley-Terry strengths by maximum likelihood (Bradley and Terry 1952; existence: Hunter 2004).

    Policy i beats policy j with probability 1 / (1 + exp(strength_j - strength_i)). The bounds are a percentile
    bootstrap that resamples prompts. The result does not depend on the order of policies; the order of prompts changes
    only which resamples are drawn.

    Args:
        wins: Shape (prompts, n, n): how often policy i beat policy j on each prompt. A tie is half a win for each, and
            a verdict that is a probability is a fraction of a win for each.
        baseline: Index of the policy whose strength is 0.

    Returns:
        Log strengths and their lower and upper 95 % bounds, each of shape (n,); all 0 for the baseline. A policy's
        bounds are NaN unless a chain of wins leads from it to the baseline and another chain leads back. If it never
        lost, for example, its strength is finite only because of `PRIOR`.

    Raises:
        ValueError: The shape differs, there is no prompt, or a number is negative or not finite.
        IndexError: `baseline` is not the index of a policy.
        ArithmeticError: The maximum of the likelihood was not reached.
    """
    by_prompt = np.asarray(wins, dtype=np.float64)
    if by_prompt.ndim != 3 or by_prompt.shape[1] != by_prompt.shape[2] or not len(by_prompt):
        raise ValueError(f"wins must have the shape (prompts, n, n) with at least one prompt, not {by_prompt.shape}")
    if not np.isfinite(by_prompt).all() or (by_prompt < 0).any():
        raise ValueError("wins must be finite and not negative")
    strength = _strengths(by_prompt.sum(axis=0)[None], baseline)[0]
    resampled = _strengths(np.tensordot(resample_counts(len(by_prompt)), by_prompt, axes=1), baseline)
    tail = (1 - resample_level(len(by_prompt))) / 2
    bounds = np.quantile(resampled, [tail, 1 - tail], axis=0)
    _, component = connected_components(by_prompt.sum(axis=0) > 0, connection="strong")
    bounds[:, component != component[baseline]] = np.nan
    return strength, bounds[0], bounds[1]


def _strengths(wins: NDArray[np.float64], baseline: int) -> NDArray[np.float64]:
    """Log strengths (tables, n) of tables of wins (tables, n, n), by Newton's method on all tables at once.

    Raises:
        ArithmeticError: The maximum of the likelihood was not reached.
    """
    n = wins.shape[1]
    smoothed = wins + PRIOR
    smoothed[:, np.arange(n), np.arange(n)] = 0
    games = smoothed + smoothed.transpose(0, 2, 1)
    strength = np.zeros(wins.shape[:2])
    free = np.delete(np.arange(n), baseline)
    for _ in range(_MAX_ITERATIONS):
        probability = expit(strength[:, :, None] - strength[:, None, :])
        gradient = (smoothed - games * probability).sum(axis=2)
        information = -games * probability * (1 - probability)
        information[:, np.arange(n), np.arange(n)] = -information.sum(axis=2)
        step = np.linalg.solve(information[:, free[:, None], free], gradient[:, free, None])[..., 0]
        # Far from the maximum a whole Newton step can overshoot; a step of at most 1 in each log strength does not.
        step /= np.maximum(1, np.abs(step).max(axis=1, keepdims=True, initial=0))
        strength[:, free] += step
        if np.abs(step).max(initial=0) < _TOLERANCE:
            return strength
    raise ArithmeticError(f"the Bradley-Terry strengths did not converge within {_MAX_ITERATIONS} Newton iterations")
