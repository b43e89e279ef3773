"""Strengths of policies of which each met each."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from sacpo.statistics.win_rate import resample_counts, resample_level

PRIOR = 0.05
"""Wins that every policy is given over every other, so that one that never lost stays finite."""

_STEPS = 200
_ENOUGH = 1e-9


def bradley_terry(
    wins: ArrayLike, baseline: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Estimate Bradley-Terry strengths by maximum likelihood (Bradley and Terry 1952; Hunter 2004 on when it exists).

    Policy i beats policy j with probability 1 / (1 + exp(strength_j - strength_i)). The bounds are those of a
    percentile bootstrap that resamples prompts. The order of policies changes nothing; that of prompts only which
    resamples are drawn.

    Args:
        wins: Shape (prompts, n, n), how often policy i beat policy j on each prompt, a tie half to each.
        baseline: The policy whose strength is 0.

    Returns:
        Log strengths and their lower and upper 95 % bounds, each of shape (n,); the baseline's are all 0. The bounds of
        a policy are NaN where wins do not lead both from it to the baseline and back (it never lost, say): only
        `PRIOR` keeps its strength finite.

    Raises:
        ValueError: The shape is another, there is no prompt, or a number is negative or not finite.
        IndexError: There is no such baseline.
    """
    won = np.asarray(wins, dtype=np.float64)
    if won.ndim != 3 or won.shape[1] != won.shape[2] or not len(won):
        raise ValueError(f"wins must have the shape (prompts, n, n) with at least one prompt, not {won.shape}")
    if not np.isfinite(won).all() or (won < 0).any():
        raise ValueError("wins must be finite and not negative")
    strength = _strengths(won.sum(axis=0)[None], baseline)[0]
    resampled = _strengths(np.tensordot(resample_counts(len(won)), won, axes=1), baseline)
    tail = (1 - resample_level(len(won))) / 2
    bounds = np.quantile(resampled, [tail, 1 - tail], axis=0)
    _, group = connected_components(won.sum(axis=0) > 0, connection="strong")
    bounds[:, group != group[baseline]] = np.nan
    return strength, bounds[0], bounds[1]


def _strengths(wins: NDArray[np.float64], baseline: int) -> NDArray[np.float64]:
    """Log strengths (tables, n) from tables of wins (tables, n, n), all by Newton's method at once.

    Raises:
        ArithmeticError: The likelihood's maximum was not reached.
    """
    n = wins.shape[1]
    won = wins + PRIOR
    won[:, np.arange(n), np.arange(n)] = 0
    games = won + won.transpose(0, 2, 1)
    strength = np.zeros(wins.shape[:2])
    free = np.delete(np.arange(n), baseline)
    for _ in range(_STEPS):
        likely = expit(strength[:, :, None] - strength[:, None, :])
        gradient = (won - games * likely).sum(axis=2)
        curvature = -games * likely * (1 - likely)
        curvature[:, np.arange(n), np.arange(n)] = -curvature.sum(axis=2)
        step = np.linalg.solve(curvature[:, free[:, None], free], gradient[:, free, None])[..., 0]
        # Far from the maximum a whole step may overshoot; one of at most 1 in any strength does not.
        step /= np.maximum(1, np.abs(step).max(axis=1, keepdims=True, initial=0))
        strength[:, free] += step
        if np.abs(step).max(initial=0) < _ENOUGH:
            return strength
    raise ArithmeticError("the Bradley-Terry strengths did not converge")
