"""Win rates over several training seeds, and the sources of their variance."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from sacpo.statistics.win_rate import CONFIDENCE, NO_ESTIMATE, Estimate, Ids, as_prompt_means, estimates, wilson


@dataclass(frozen=True)
class VarianceSplit:
    """Contributions to the variance of a reported win rate, in squared win-rate units; their sum is that variance.

    Attributes:
        prompts: From the sample of prompts and of answers to them; more prompts reduce it. NaN with one prompt.
        seeds: From the sample of training seeds; more seeds reduce it. NaN with one seed or one prompt.
        repeats: From the judge's noise; more repeats reduce it. NaN if no pair of answers was judged twice in one
            presentation order: the judge's noise is then part of `prompts`.
    """

    prompts: float
    seeds: float
    repeats: float


def seed_estimate(means: ArrayLike) -> Estimate:
    """Estimate a setting's win rate over prompts and training seeds, which are two crossed samples.

    The variance is the variance of the prompts' mean plus the variance of the seeds' mean. Resampling both (the
    pigeonhole bootstrap, Owen 2007) gives the same variance. It counts the noise of single answers twice, so the
    intervals are rather too wide than too narrow. The bounds are Wilson's bounds for the number of verdicts with this
    variance (Korn and Graubard 1998), with the quantile of Student's t at Satterthwaite's degrees of freedom.
    Percentiles of the resamples are not used: with two or three seeds that differ much, they cover the truth in 67 to
    77 % of cases, and these bounds in 87 to 93 %.

    Args:
        means: Shape (prompts, seeds), the prompt means of one setting.

    Returns:
        The mean over prompts of their mean over seeds, with its 95 % interval. With one seed it is the result of
        `estimates`, which does not cover other seeds. All NaN without verdicts.

    Raises:
        ValueError: The array is not a matrix, or a mean is outside [0, 1].
    """
    matrix = as_prompt_means(means)
    known = ~np.isnan(matrix)
    matrix = matrix[np.ix_(known.any(axis=1), known.any(axis=0))]
    if not matrix.size:
        return NO_ESTIMATE
    by_prompt, by_seed = np.nanmean(matrix, axis=1), np.nanmean(matrix, axis=0)
    value, n, seeds = float(by_prompt.mean()), by_prompt.size, by_seed.size
    if min(n, seeds) < 2 or max(np.ptp(by_prompt), np.ptp(by_seed)) < 1e-9:
        return estimates(by_prompt[:, None])[0]
    prompt_variance, seed_variance = float(by_prompt.var(ddof=1)) / n, float(by_seed.var(ddof=1)) / seeds
    variance = prompt_variance + seed_variance
    freedom = variance**2 / (prompt_variance**2 / (n - 1) + seed_variance**2 / (seeds - 1))
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, freedom))
    low, high = wilson(value, value * (1 - value) / variance, quantile)
    return Estimate(value, low, high, n)


def variance_split(scores: ArrayLike, prompts: Ids, seeds: Ids, cells: Ids) -> VarianceSplit:
    """Split the variance of a win rate by the method of moments; negative contributions are set to 0.

    The win rate is a nested mean: over prompts, over the seeds of a prompt, over the cells of a prompt and seed, and
    over the repeats in a cell. The contribution of repeats comes from the variance within cells. That of seeds comes
    from the variance between the seeds' means over the prompts that all seeds have, less the part that the interaction
    of prompts and seeds explains (two-way analysis of variance). That of prompts comes from the variance between the
    prompts' means, less the contribution of repeats.

    Args:
        scores: Shape (n,), one entry per decided verdict, in [0, 1].
        prompts: Length n, the prompt id of each verdict (all ids of one type, as in the next two lists).
        seeds: Length n, the training seed of each verdict's policy.
        cells: Length n; verdicts with the same prompt, seed and cell are repeats of one call to the judge.

    Returns:
        The three contributions.

    Raises:
        ValueError: There is no verdict, or the lengths differ.
    """
    values = np.asarray(scores, dtype=np.float64)
    indices = [np.unique(np.asarray(ids), return_inverse=True)[1] for ids in (prompts, seeds, cells)]
    if values.ndim != 1 or any(index.shape != values.shape for index in indices):
        raise ValueError(
            "scores, prompts, seeds and cells must be four lists of one length, not of "
            f"{values.size}, {', '.join(str(index.size) for index in indices)}"
        )
    if not values.size:
        raise ValueError("a win rate needs at least one decided verdict")
    distinct_cells, cell = np.unique(np.stack(indices, axis=1), axis=0, return_inverse=True)
    repeats_of_cell = np.bincount(cell)
    cell_means = np.bincount(cell, weights=values) / repeats_of_cell
    prompt, seed = distinct_cells[:, 0], distinct_cells[:, 1]
    shape = int(prompt.max()) + 1, int(seed.max()) + 1
    cell_counts = np.zeros(shape)
    np.add.at(cell_counts, (prompt, seed), 1)
    table = np.full(shape, np.nan)  # mean score of each prompt and seed
    present = cell_counts > 0
    table[present] = 0
    np.add.at(table, (prompt, seed), cell_means / cell_counts[prompt, seed])

    weights = 1 / (shape[0] * present.sum(axis=1)[prompt] * cell_counts[prompt, seed])
    freedom = values.size - repeats_of_cell.size
    within = float(((values - cell_means[cell]) ** 2).sum()) / freedom if freedom else float("nan")
    repeat_part = within * float((weights**2 / repeats_of_cell).sum())

    prompt_part = float("nan")
    if shape[0] > 1:
        prompt_part = float(np.nanmean(table, axis=1).var(ddof=1)) / shape[0] - (repeat_part if freedom else 0.0)

    seed_part = float("nan")
    complete = table[present.all(axis=1)]
    n = len(complete)
    if min(n, shape[1]) > 1:
        by_seed = complete.mean(axis=0)
        residuals = complete - complete.mean(axis=1, keepdims=True) - by_seed + complete.mean()
        interaction = float((residuals**2).sum()) / ((n - 1) * (shape[1] - 1))
        seed_part = (float(by_seed.var(ddof=1)) - interaction / n) / shape[1]
    return VarianceSplit(float(np.maximum(prompt_part, 0)), float(np.maximum(seed_part, 0)), repeat_part)
