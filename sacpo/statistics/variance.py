"""Where the noise of a win rate comes from, where a policy was trained with several seeds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from sacpo.statistics.win_rate import CONFIDENCE, Estimate, Ids, estimates, matrix_of, wilson


@dataclass(frozen=True)
class VarianceSplit:
    """Contributions to the variance of a reported win rate, in squared win-rate units; they add up to that variance.

    Attributes:
        prompts: Of the draw of prompts and of their answers, which more prompts lessen; NaN with one prompt.
        seeds: Of the draw of training seeds, which more seeds lessen; NaN with one seed or one prompt.
        repeats: Of the judge's noise, which more repeats lessen; NaN where no pair of answers was judged twice in one
            order: it is then part of `prompts`.
    """

    prompts: float
    seeds: float
    repeats: float


def seed_estimate(means: ArrayLike) -> Estimate:
    """Estimate a setting's win rate over prompts and training seeds, two samples that cross.

    The variance is that of the means of prompts plus that of the means of seeds, to which resampling both (the
    pigeonhole bootstrap, Owen 2007) comes as well; it counts the noise of single answers twice, so it errs towards too
    wide. The bounds are Wilson's at the number of verdicts that has this variance (Korn and Graubard 1998), with the
    quantile of Student's t at Satterthwaite's degrees of freedom. Percentiles of the resamples would not do: two or
    three seeds that differ much are covered in 67 to 77 % by them, in 87 to 93 % by these bounds.

    Args:
        means: Shape (prompts, seeds), a matrix of prompt means of one setting.

    Returns:
        The mean over prompts of their mean over seeds, with its 95 % interval; with one seed that of `estimates`, which
        knows nothing of other seeds. All NaN without verdicts.

    Raises:
        ValueError: The array is no matrix, or a mean is outside [0, 1].
    """
    matrix = matrix_of(means)
    known = ~np.isnan(matrix)
    matrix = matrix[np.ix_(known.any(axis=1), known.any(axis=0))]
    if not matrix.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    by_prompt, by_seed = np.nanmean(matrix, axis=1), np.nanmean(matrix, axis=0)
    value, n, seeds = float(by_prompt.mean()), by_prompt.size, by_seed.size
    if min(n, seeds) < 2 or max(np.ptp(by_prompt), np.ptp(by_seed)) < 1e-9:
        return estimates(by_prompt[:, None])[0]
    of_prompts, of_seeds = float(by_prompt.var(ddof=1)) / n, float(by_seed.var(ddof=1)) / seeds
    variance = of_prompts + of_seeds
    freedom = variance**2 / (of_prompts**2 / (n - 1) + of_seeds**2 / (seeds - 1))
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, freedom))
    low, high = wilson(value, value * (1 - value) / variance, quantile)
    return Estimate(value, low, high, n)


def variance_split(scores: ArrayLike, prompts: Ids, seeds: Ids, cells: Ids) -> VarianceSplit:
    """Split the variance of a win rate by the method of moments, each part at least 0.

    The win rate is the mean over prompts of their mean over seeds, of that over cells, of that over repeats. Repeats
    vary within cells, seeds between their means over the prompts that all seeds have, beyond what the interaction of
    prompts and seeds explains (the two-way analysis of variance); prompts are what the repeats leave of the variance
    between the prompts' means.

    Args:
        scores: Shape (n,), one entry per decided verdict: 1.0 win, 0.5 tie, 0.0 loss.
        prompts: Length n, the prompt of each verdict (ids of one type, as in the next two).
        seeds: Length n, the training seed of each verdict's policy.
        cells: Length n; verdicts of one prompt and seed with one cell are repeats of one call to the judge.

    Returns:
        The three contributions.

    Raises:
        ValueError: There is no verdict, or the lengths differ.
    """
    values = np.asarray(scores, dtype=np.float64)
    levels = [np.unique(np.asarray(ids), return_inverse=True)[1] for ids in (prompts, seeds, cells)]
    if values.ndim != 1 or any(level.shape != values.shape for level in levels):
        raise ValueError("scores, prompts, seeds and cells must be four lists of one length")
    if not values.size:
        raise ValueError("a win rate needs at least one decided verdict")
    places, cell = np.unique(np.stack(levels, axis=1), axis=0, return_inverse=True)
    judged = np.bincount(cell)
    cell_means = np.bincount(cell, weights=values) / judged
    prompt, seed = places[:, 0], places[:, 1]
    shape = int(prompt.max()) + 1, int(seed.max()) + 1
    cells_of = np.zeros(shape)
    np.add.at(cells_of, (prompt, seed), 1)
    table = np.full(shape, np.nan)
    present = cells_of > 0
    table[present] = 0
    np.add.at(table, (prompt, seed), cell_means / cells_of[prompt, seed])

    weights = 1 / (shape[0] * present.sum(axis=1)[prompt] * cells_of[prompt, seed])
    freedom = values.size - judged.size
    within = float(((values - cell_means[cell]) ** 2).sum()) / freedom if freedom else float("nan")
    repeats = within * float((weights**2 / judged).sum())

    of_prompts = float("nan")
    if shape[0] > 1:
        of_prompts = float(np.nanmean(table, axis=1).var(ddof=1)) / shape[0] - (repeats if freedom else 0.0)

    of_seeds = float("nan")
    complete = table[present.all(axis=1)]
    n = len(complete)
    if min(n, shape[1]) > 1:
        by_seed = complete.mean(axis=0)
        rest = complete - complete.mean(axis=1, keepdims=True) - by_seed + complete.mean()
        interaction = float((rest**2).sum()) / ((n - 1) * (shape[1] - 1))
        of_seeds = (float(by_seed.var(ddof=1)) - interaction / n) / shape[1]
    return VarianceSplit(float(np.maximum(of_prompts, 0)), float(np.maximum(of_seeds, 0)), repeats)
