"""Win rates at equal length of answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, hstack, vstack
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from sacpo.statistics.win_rate import RESAMPLES, Estimate, Ids, resample_counts, resample_level

INVERSE_RIDGE = 100.0
"""Scikit-learn's C. The win rate of a trial that won every verdict stays below 1; other rates move by under 0.001."""
PROMPT_VARIANCE = 2.0
"""Prior variance of a prompt's difficulty in log odds: the ridge on the intercepts of prompts."""
SMALLEST_TRIALS = 2
"""Fewest trials whose verdicts separate the effect of length from the difficulty of prompts."""
SMALLEST_PROMPTS = 30
"""Fewest prompts: in simulations with fewer, the controlled rate is no nearer to the truth than the plain one."""
_CHUNK = 50  # resamples at a time

Array = NDArray[np.float64]


@dataclass(frozen=True)
class LengthControlled:
    """Win rates at equal length.

    Attributes:
        rates: Win rate of each trial with its 95 % interval over prompts, by the trial's id as text; empty if there are
            too few trials or prompts.
        coefficient: The largest increase of the log odds of winning that length alone gives, shared by all trials; 0
            if all differences of length are equal, since no effect can then be seen; NaN without rates.
        reason: Why there are no rates; else empty.
    """

    rates: dict[str, Estimate]
    coefficient: float
    reason: str = ""


def length_controlled(
    scores: ArrayLike, trials: Sequence[object] | NDArray[np.generic], prompts: Ids, length_differences: ArrayLike
) -> LengthControlled:
    """Estimate each trial's win rate as if its answers had the length of the baseline's answers.

    The method follows AlpacaEval 2 (Dubois et al. 2024, Length-Controlled AlpacaEval): one logistic regression on all
    verdicts, with one intercept per trial, one ridge intercept per prompt (its difficulty), and one shared coefficient
    for tanh(difference of lengths / its standard deviation). The win rate is the mean over prompts of the predicted
    probabilities at equal length, which differs from the probability at the average prompt. A score between 0 and 1
    counts as that part of a win.

    The intervals resample prompts. Each resample's parameters are one Newton step away from the estimate (Davidson and
    MacKinnon 1999, Bootstrap testing in nonlinear models), in which the intercepts of prompts are profiled out; the
    bounds are percentiles, widened for few prompts as those of win rates are.

    Args:
        scores: Shape (n,), one entry per decided verdict of the sweep, in [0, 1].
        trials: Length n, the trial id of each verdict (all ids of one type).
        prompts: Length n, the prompt id of each verdict (all ids of one type).
        length_differences: Shape (n,), length of the policy's answer minus length of the baseline's, in any unit.

    Returns:
        The rates; none with fewer than `SMALLEST_TRIALS` trials or `SMALLEST_PROMPTS` prompts.

    Raises:
        ValueError: There is no verdict, a score is outside [0, 1], a difference is not finite, or the lists have
            different lengths.
    """
    values = np.asarray(scores, dtype=np.float64)
    lengths = np.asarray(length_differences, dtype=np.float64)
    distinct, trial = np.unique(np.asarray(trials), return_inverse=True)
    distinct_prompts, prompt = np.unique(np.asarray(prompts), return_inverse=True)
    if values.ndim != 1 or not values.shape == trial.shape == prompt.shape == lengths.shape:
        raise ValueError(
            "scores, trials, prompts and length_differences must have the same length, not "
            f"{values.size}, {trial.size}, {prompt.size} and {lengths.size}"
        )
    if not values.size:
        raise ValueError("a win rate needs at least one decided verdict")
    if not ((values >= 0) & (values <= 1)).all() or not np.isfinite(lengths).all():
        raise ValueError("scores must be within 0 and 1, and length_differences finite")
    if distinct.size < SMALLEST_TRIALS or distinct_prompts.size < SMALLEST_PROMPTS:
        reason = (
            f"{distinct.size} trial(s) on {distinct_prompts.size} prompts: at least {SMALLEST_TRIALS} trials and "
            f"{SMALLEST_PROMPTS} prompts are needed to separate length from the difficulty of prompts"
        )
        return LengthControlled({}, float("nan"), reason)
    spread = float(lengths.std())
    feature = np.tanh(lengths / spread) if spread > 0 else np.zeros_like(lengths)
    shared, difficulty = _fit(values, trial, prompt, feature)
    rates = expit(shared[:-1] + difficulty[:, None])  # (prompts, trials), at equal length
    answered = np.zeros(rates.shape, dtype=bool)
    answered[prompt, trial] = True
    estimate = _means(rates[None], answered.astype(float)[None])[0]
    low, high = _bounds(values, trial, prompt, feature, shared, difficulty, answered)
    low, high = np.minimum(low, estimate), np.maximum(high, estimate)
    by_trial = {
        str(name): Estimate(float(estimate[i]), float(low[i]), float(high[i]), int(answered[:, i].sum()))
        for i, name in enumerate(distinct)
    }
    return LengthControlled(by_trial, float(shared[-1]))


def _fit(values: Array, trial: NDArray[np.intp], prompt: NDArray[np.intp], feature: Array) -> tuple[Array, Array]:
    """The trials' intercepts with the coefficient of length after them, and the prompts' intercepts."""
    rows = np.arange(values.size)
    ones = np.ones(values.size)
    # One ridge for all columns: the columns of prompts are scaled, so that theirs is 1 / PROMPT_VARIANCE.
    scale = np.sqrt(PROMPT_VARIANCE / INVERSE_RIDGE)
    design = hstack(
        [csr_array((ones, (rows, trial))), csr_array(feature[:, None]), csr_array((scale * ones, (rows, prompt)))]
    )
    # Each verdict enters twice, as a win weighted by its score and as a loss weighted by 1 - score.
    model = LogisticRegression(C=INVERSE_RIDGE, fit_intercept=False, tol=1e-8, max_iter=10_000)
    outcomes = np.repeat([1, 0], values.size)
    model.fit(vstack([design, design], format="csr"), outcomes, sample_weight=np.concatenate([values, 1 - values]))
    count = int(trial.max()) + 2
    return np.asarray(model.coef_[0][:count]), np.asarray(model.coef_[0][count:] * scale)


def _bounds(
    values: Array,
    trial: NDArray[np.intp],
    prompt: NDArray[np.intp],
    feature: Array,
    shared: Array,
    difficulty: Array,
    answered: NDArray[np.bool_],
) -> tuple[Array, Array]:
    """Lower and upper bounds of every trial's rate over resamples of prompts."""
    n, width = len(difficulty), shared.size
    logits = shared[trial] + shared[-1] * feature + difficulty[prompt]
    probability = expit(logits)
    weight = probability * (1 - probability)
    gradient = np.zeros((n, width))  # each prompt's part of the gradient of the shared parameters
    np.add.at(gradient, (prompt, trial), values - probability)
    np.add.at(gradient, (prompt, np.full_like(prompt, width - 1)), (values - probability) * feature)
    own = np.bincount(prompt, weights=weight, minlength=n) + 1 / PROMPT_VARIANCE
    cross = np.zeros((n, width))
    np.add.at(cross, (prompt, trial), weight)
    np.add.at(cross, (prompt, np.full_like(prompt, width - 1)), weight * feature)
    by_trial = np.zeros((n, width - 1))
    np.add.at(by_trial, (prompt, trial), weight * feature)
    information = np.zeros((n, width, width))
    diagonal = np.arange(width - 1)
    information[:, diagonal, diagonal] = cross[:, :-1]
    information[:, :-1, -1] = information[:, -1, :-1] = by_trial
    information[:, -1, -1] = np.bincount(prompt, weights=weight * feature**2, minlength=n)
    slope = -cross / own[:, None]  # change of a prompt's intercept with the shared parameters
    information += cross[:, :, None] * slope[:, None, :]

    counts = resample_counts(n)
    ridge = np.eye(width) / INVERSE_RIDGE
    resampled = np.empty((RESAMPLES, width - 1))
    for start in range(0, RESAMPLES, _CHUNK):
        part = counts[start : start + _CHUNK]
        matrix = np.tensordot(part, information, axes=1) + ridge
        change = np.linalg.solve(matrix, (part @ gradient - shared / INVERSE_RIDGE)[..., None])[..., 0]
        intercepts = difficulty + change @ slope.T
        rates = expit((shared + change)[:, None, :-1] + intercepts[:, :, None])
        resampled[start : start + _CHUNK] = _means(rates, part[:, :, None] * answered)
    tail = (1 - resample_level(n)) / 2
    low, high = np.nanquantile(resampled, [tail, 1 - tail], axis=0)
    return low, high


def _means(rates: Array, weights: Array) -> Array:
    """Weighted means over prompts of rates (resamples, prompts, trials); NaN where no prompt has a weight."""
    with np.errstate(invalid="ignore"):
        return np.asarray((rates * weights).sum(axis=1) / weights.sum(axis=1))
