"""Win rates at equal length of answers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, hstack, vstack
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

INVERSE_RIDGE = 100.0
"""Scikit-learn's C. The win rate of a trial that won every verdict stays below 1; other rates move by under 0.001."""


def length_controlled(
    scores: ArrayLike, trials: Sequence[object] | NDArray[np.generic], length_differences: ArrayLike
) -> tuple[dict[str, float], float]:
    """Estimate each trial's win rate as if its answers had the length of the baseline's answers.

    The method follows AlpacaEval 2 (Dubois et al. 2024, Length-Controlled AlpacaEval): one logistic regression on all
    verdicts, with one intercept per trial and one shared coefficient for tanh(difference of lengths / its standard
    deviation). AlpacaEval's term for each prompt's difficulty is left out: all trials answer the same prompts, so the
    term does not distinguish them. A tie counts as half a win and half a loss.

    Args:
        scores: Shape (n,), one entry per decided verdict of the sweep, in [0, 1].
        trials: Length n, the trial id of each verdict (all ids of one type).
        length_differences: Shape (n,), length of the policy's answer minus length of the baseline's, in any unit.

    Returns:
        The win rate at equal length of each trial, by its id as text; and the shared coefficient, the largest increase
        of the log odds of winning that length alone gives. If all differences are equal, the effect of length cannot be
        separated from the trials, and the coefficient is 0.

    Raises:
        ValueError: There is no verdict, a score is outside [0, 1], a difference is not finite, or the lists have
            different lengths.
    """
    values = np.asarray(scores, dtype=np.float64)
    lengths = np.asarray(length_differences, dtype=np.float64)
    distinct, trial_index = np.unique(np.asarray(trials), return_inverse=True)
    if values.ndim != 1 or not values.shape == trial_index.shape == lengths.shape:
        raise ValueError(
            f"scores, trials and length_differences must have the same length, not {values.size}, {trial_index.size} "
            f"and {lengths.size}"
        )
    if not values.size:
        raise ValueError("a win rate needs at least one decided verdict")
    if not ((values >= 0) & (values <= 1)).all() or not np.isfinite(lengths).all():
        raise ValueError("scores must be within 0 and 1, and length_differences finite")
    spread = float(lengths.std())
    feature = np.tanh(lengths / spread) if spread > 0 else np.zeros_like(lengths)
    one_hot = csr_array((np.ones(trial_index.size), (np.arange(trial_index.size), trial_index)))
    design = hstack([one_hot, csr_array(feature[:, None])])
    # Each verdict enters twice, as a win weighted by its score and as a loss weighted by 1 - score.
    model = LogisticRegression(C=INVERSE_RIDGE, fit_intercept=False, tol=1e-8, max_iter=10_000)
    outcomes = np.repeat([1, 0], values.size)
    model.fit(vstack([design, design], format="csr"), outcomes, sample_weight=np.concatenate([values, 1 - values]))
    *intercepts, coefficient = model.coef_[0]
    return dict(zip(map(str, distinct), map(float, expit(intercepts)), strict=True)), float(coefficient)
