"""How sure a front is: resampled win rates, probabilities of being on the front and of being the best, hypervolume.

All policies are resampled together, by prompt, so their shared difficulty cancels as in paired differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sacpo.statistics.win_rate import CONFIDENCE, RESAMPLES, SEED, resample_counts

LEVELS = np.arange(101) / 100
"""Values of the first axis at which the band of the front is given."""


@dataclass(frozen=True)
class Band:
    """The front's height over the first axis: the largest second coordinate of points at least so far to the right.

    Attributes:
        median, low, high: Shape (101,), over the resamples, at `LEVELS`; 0 where no point lies to the right.
    """

    median: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def resampled_rates(
    means: Mapping[str, NDArray[np.float64]], prompts: Mapping[str, Sequence[str]]
) -> dict[str, NDArray[np.float64]]:
    """Win rates of all policies in each resample of prompts.

    Criteria that ask some of the same prompts are resampled together; others independently.

    Args:
        means: Criterion to prompt means, shape (prompts of the criterion, policies); NaN if no verdict was decided.
        prompts: Criterion to the ids of the rows.

    Returns:
        Criterion to an array of the shape (RESAMPLES, policies); NaN where no prompt of a policy was drawn.
    """
    rates: dict[str, NDArray[np.float64]] = {}
    for number, group in enumerate(_sharing(prompts)):
        ids = sorted({prompt for criterion in group for prompt in prompts[criterion]})
        counts = resample_counts(len(ids)) if number == 0 else _independent_counts(len(ids), number)
        position = {prompt: i for i, prompt in enumerate(ids)}
        for criterion in group:
            own = counts[:, [position[prompt] for prompt in prompts[criterion]]]
            known = ~np.isnan(means[criterion])
            with np.errstate(invalid="ignore"):
                rates[criterion] = (own @ np.where(known, means[criterion], 0.0)) / (own @ known.astype(np.float64))
    return rates


def _sharing(prompts: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Criteria in groups that share prompts."""
    groups: list[list[str]] = []
    for criterion, ids in prompts.items():
        linked = [group for group in groups if any(set(ids) & set(prompts[other]) for other in group)]
        groups = [group for group in groups if group not in linked]
        groups.append([*(other for group in linked for other in group), criterion])
    return groups


def _independent_counts(n: int, number: int) -> NDArray[np.float64]:
    generator = np.random.default_rng([SEED, number])
    return generator.multinomial(n, np.full(n, 1 / n), RESAMPLES).astype(np.float64)


def fronts(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which policies are on the front of each resample, by the rule of `sacpo.statistics.pareto.on_front`.

    Args:
        x, y: Shape (resamples, policies); a policy with a NaN is not on the front and dominates no other.

    Returns:
        The same shape.
    """
    x, y = (np.where(np.isnan(x) | np.isnan(y), -np.inf, axis) for axis in (x, y))
    order = np.lexsort((-y, -x), axis=-1)
    xs, ys = (np.take_along_axis(axis, order, axis=1) for axis in (x, y))
    best = np.maximum.accumulate(ys, axis=1)
    before = np.concatenate([np.full((len(ys), 1), -np.inf), best[:, :-1]], axis=1)
    # The first of the points before that reach `before` has the largest x of them.
    is_new = ys > before
    first = np.maximum.accumulate(np.where(is_new, np.arange(ys.shape[1]), 0), axis=1)
    first = np.concatenate([np.zeros((len(ys), 1), dtype=first.dtype), first[:, :-1]], axis=1)
    dominated = (before > ys) | ((before == ys) & (np.take_along_axis(xs, first, axis=1) > xs))
    result = np.empty(dominated.shape, dtype=np.bool_)
    np.put_along_axis(result, order, ~dominated & np.isfinite(ys), axis=1)
    return result


def best_shares(objective: NDArray[np.float64], satisfied: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of the resamples in which each policy has the largest objective of those that satisfy the constraints.

    Args:
        objective: Shape (resamples, policies); NaN is never the best.
        satisfied: The same shape.

    Returns:
        Shape (policies,); equal policies share a resample. The sum is below 1 if no policy satisfies in some.
    """
    values = np.where(satisfied & ~np.isnan(objective), objective, -np.inf)
    is_best = (values == values.max(axis=1, keepdims=True)) & np.isfinite(values)
    shares: NDArray[np.float64] = (is_best / np.maximum(is_best.sum(axis=1, keepdims=True), 1)).mean(axis=0)
    return shares


def hypervolumes(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area of the unit square that the points of each resample dominate; shape (resamples,)."""
    x, y = (np.where(np.isnan(x) | np.isnan(y), 0.0, axis) for axis in (x, y))
    order = np.argsort(-x, axis=1)
    xs, ys = (np.take_along_axis(axis, order, axis=1) for axis in (x, y))
    widths = xs - np.concatenate([xs[:, 1:], np.zeros((len(xs), 1))], axis=1)
    area: NDArray[np.float64] = (widths * np.maximum.accumulate(ys, axis=1)).sum(axis=1)
    return area


def hypervolume_interval(value: float, resamples: NDArray[np.float64]) -> tuple[float, float]:
    """Bounds of a hypervolume at 95 %: the basic bootstrap (Davison and Hinkley 1997, section 5.2).

    A front is a maximum over noisy points, so a sample overestimates its hypervolume, and resamples overestimate the
    sample's by about as much again. The basic interval, reflected at the value, takes this off; percentiles add it.
    """
    low, high = np.quantile(resamples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return max(0.0, min(2 * value - float(high), value)), min(1.0, max(2 * value - float(low), value))


def band(x: NDArray[np.float64], y: NDArray[np.float64]) -> Band:
    """The band in which the front lies: quantiles over the resamples, at each of `LEVELS`, at 95 % each."""
    height = np.stack([np.where(x >= level, y, 0.0).max(axis=1) for level in LEVELS], axis=1)
    height = np.nan_to_num(height)
    low, median, high = np.quantile(height, [(1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2], axis=0)
    return Band(median, low, high)
