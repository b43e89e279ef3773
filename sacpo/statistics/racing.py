"""Chances that a policy still reaches the front, or is still chosen, once the remaining prompts are judged too.

The mean scores of all policies on further prompts are drawn together from their predictive distribution: a
multivariate t (Gelman et al., Bayesian Data Analysis, section 3.6) around the means so far, whose covariance is shrunk
towards one variance and one correlation of all policies. Policies share the difficulty of prompts, which therefore
cancels in their comparison as in paired differences. Criteria are drawn independently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sacpo.statistics.front import fronts
from sacpo.statistics.win_rate import SEED

FEWEST_PROMPTS = 8
"""With fewer judged prompts of a criterion nothing is predicted: every chance is 1."""
_DRAWS = 4000
_PRIOR_PROMPTS = 8  # weight of the common variance and correlation against the policies' own

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """One criterion so far.

    Attributes:
        means: Shape (judged prompts, policies): each prompt's mean score.
        remaining: Prompts that will be judged before the policies are compared.
        certifying: Prompts of the certifying part, none of which is judged yet.
    """

    means: Array
    remaining: int
    certifying: int = 0


def front_chances(first: Judged, second: Judged, baseline: float = 0.5) -> Array:
    """Each policy's chance of being on the front of two criteria when all prompts are judged.

    Args:
        first, second: The criteria.
        baseline: The SFT policy's win rate on both, with which it takes part.

    Returns:
        Shape (policies,).
    """
    if _too_few(first, second):
        return np.ones(first.means.shape[1])
    axes = []
    for number, judged in enumerate((first, second)):
        final = _predicted(judged, number)[0]
        axes.append(np.column_stack([final, np.full(len(final), baseline)]))
    return _shares(fronts(*axes)[:, :-1])


def choice_chances(objective: Judged, constrained: Sequence[Judged], bounds: Sequence[float]) -> Array:
    """Each policy's chance of being tested in the choice and of satisfying the constraints there.

    The choice tests the policies on the front of margin and objective of the choosing part. A policy whose mean on the
    certifying part is below a bound is not certified.

    Args:
        objective: The criterion that is maximised.
        constrained: The criteria of the constraints.
        bounds: The constraints' bounds.

    Returns:
        Shape (policies,).
    """
    if _too_few(objective, *constrained):
        return np.ones(objective.means.shape[1])
    gain = _predicted(objective, 0)[0]
    drawn = [_predicted(judged, number) for number, judged in enumerate(constrained, start=1)]
    margin = np.min([final - bound for (final, _), bound in zip(drawn, bounds, strict=True)], axis=0)
    satisfies = np.all([later >= bound for (_, later), bound in zip(drawn, bounds, strict=True)], axis=0)
    return _shares(fronts(margin, gain) & satisfies)


def to_stop(chances: Array, budget: float) -> NDArray[np.bool_]:
    """The policies with the smallest chances, as many as the sum of their chances is at most the budget.

    Args:
        chances: Shape (policies,).
        budget: The largest sum: the expected number of them that would have got there.

    Returns:
        Shape (policies,).
    """
    order = np.argsort(chances, kind="stable")
    stops = np.zeros(len(chances), dtype=np.bool_)
    stops[order] = np.cumsum(chances[order]) <= budget
    return stops


def _shares(got_there: NDArray[np.bool_]) -> Array:
    """The share of the draws in which each policy got there; none is 0, as if it did in one draw more."""
    return np.asarray((got_there.sum(axis=0) + 1) / (len(got_there) + 1), dtype=np.float64)


def _too_few(*criteria: Judged) -> bool:
    return min(len(judged.means) for judged in criteria) < FEWEST_PROMPTS


def _predicted(judged: Judged, stream: int) -> tuple[Array, Array]:
    """Draws of the mean over the judged and the remaining prompts, and of that over the certifying ones.

    Returns:
        Two arrays of the shape (draws, policies).
    """
    means = judged.means
    n, policies = means.shape
    generator = np.random.default_rng([SEED, stream])
    so_far = means.mean(axis=0)
    factor = np.linalg.cholesky(_covariance(means)).T
    freedom = n - 1 + _PRIOR_PROMPTS
    scale = np.sqrt(freedom / generator.chisquare(freedom, (_DRAWS, 1)))

    def noise() -> Array:
        return np.asarray(generator.standard_normal((_DRAWS, policies)) @ factor * scale)

    expected = so_far + noise() / np.sqrt(n)
    further = expected + noise() / np.sqrt(max(judged.remaining, 1))
    final = (n * so_far + judged.remaining * further) / (n + judged.remaining)
    return final, expected + noise() / np.sqrt(max(judged.certifying, 1))


def _covariance(means: Array) -> Array:
    """Covariance of the policies' scores on a prompt, shrunk towards one variance and one correlation.

    The variance has that of one prompt more whose scores spread as all scores do, so that policies whose scores were
    constant so far are not taken to stay so.
    """
    n, policies = means.shape
    own = np.atleast_2d(np.cov(means, rowvar=False))
    variances = np.diag(own)
    shared = (own.sum() - variances.sum()) / max(policies * (policies - 1), 1)
    common = np.full((policies, policies), shared)
    np.fill_diagonal(common, variances.mean() + means.var() / n)
    shrunk = (own * (n - 1) + common * _PRIOR_PROMPTS) / (n - 1 + _PRIOR_PROMPTS)
    return np.asarray(shrunk + np.eye(policies) * 1e-12)
