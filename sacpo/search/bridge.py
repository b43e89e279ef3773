"""The search `bridge`: the ends of each path, then the lambda* at which its preview satisfies the constraints.

A path is a chain with a beta. Its ends are stage 1 and the most conservative stage 2; weight merges between them cost
no training. As many paths are opened as leave one training for lambda*. The path whose preview promises the best
unconstrained criteria at lambda* comes first. A policy is trained at lambda*; the preview is estimated again with it,
since its distance from the preview corrects the curve (`sacpo.statistics.preview`), and so on until lambda* stays where
a policy was trained. Each proposal is thus a Newton step with the slope of the preview. It is safeguarded: measured
policies bracket lambda*, and a step that leaves the bracket is replaced by a secant step within it. Then the lambda at
which the lower edge of the preview's band satisfies the constraints is trained, unless a policy of the path already
satisfies them with their confidence.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sacpo.search.observations import Floats, Known, rounded
from sacpo.spaces.search import Proposal
from sacpo.spaces.stages import grid_stages, proposed_stages
from sacpo.statistics.preview import crossing

_TOLERANCE = 0.03  # share of the largest lambda below which two policies count as one
_EDGE = 0.1  # share of the bracket that a safeguarded step keeps from its ends


def propose(known: Known) -> Proposal | None:
    """The next policy; None if results of others are needed first, or if the search has ended."""
    paths = _opened(known)
    for chain, beta in paths:
        for proposal in _ends(known, chain, beta):
            if not known.is_known(proposal):
                return proposal
    if known.pending:
        return None
    searched = [path for key in paths if (path := _searched(known, *key)) is not None]
    searched.sort(key=lambda path: -path.objective)  # stable: equal ones stay in the order of the space
    for path in searched:
        policy = _next(known, path)
        if policy is not None and known.spent(policy) <= known.search.trainings:
            return policy
    return None


def ending(known: Known) -> str:
    """Why no further policy is proposed."""
    if not any(_searched(known, *key) for key in _opened(known)):
        return (
            f"no preview reaches {_bounds(known)}: a smaller search.beta_over_lambda is more conservative, a smaller "
            "constraint asks for less"
        )
    return "no training is left" if known.spent() >= known.search.trainings else "each path is trained at its lambda*"


def _bounds(known: Known) -> str:
    return " and ".join(f"{c.criterion} {c.at_least:g}" for c in known.space.constraint)


def _opened(known: Known) -> list[tuple[str, float]]:
    """The paths whose ends are trained: as many as leave a training for lambda*, and at least one.

    Pure arithmetic on the space, so that it never depends on results.
    """
    search = known.search
    opened: list[tuple[str, float]] = []
    ends: list[Proposal] = []
    for chain, beta in itertools.product(search.chains, search.beta):
        with_this = [*ends, _end(known, chain, beta)]
        if not opened or len(proposed_stages(with_this) - grid_stages(known.space)) < search.trainings:
            opened.append((chain, beta))
            ends = with_this
    return opened


def _end(known: Known, chain: str, beta: float) -> Proposal:
    smallest = known.search.beta_over_lambda[0]
    return Proposal(chain=chain, beta=beta, beta_over_lambda=smallest, reason="the most conservative policy")


def _ends(known: Known, chain: str, beta: float) -> list[Proposal]:
    """The policies that need no results: the conservative end, and merges of both ends."""
    end = _end(known, chain, beta)
    reason = "merge of both ends: no training"
    return [end, *(end.model_copy(update={"q": q, "reason": reason}) for q in known.search.q)]


@dataclass(frozen=True)
class _SearchedPath:
    """A path with what is known of it.

    Attributes:
        target: lambda*, from the preview.
        objective: What its preview promises there: the sum of the criteria without a bound.
        secure: The lambda at which the lower edge of the band satisfies the constraints; NaN if it does not.
        trained: lambda of each policy that ended, and its margin over the bounds (NaN if it failed); ascending.
        is_satisfied: A policy of the path, other than its conservative end, satisfies the constraints.
    """

    chain: str
    beta: float
    target: float
    objective: float
    secure: float
    trained: tuple[tuple[float, float], ...]
    is_satisfied: bool


def _searched(known: Known, chain: str, beta: float) -> _SearchedPath | None:
    """A path whose preview reaches the constraints; None for others, and where an end failed."""
    path = known.paths.get((chain, beta))
    if path is None:
        return None
    target = crossing(path.lambdas, _margins(known, path.value), 0.0)
    if np.isnan(target):
        return None
    bounded = {constraint.criterion for constraint in known.space.constraint}
    free = [name for name in path.value if name not in bounded] or list(path.value)
    objective = sum(float(np.interp(target, path.lambdas, path.value[name])) for name in free)
    trained = []
    is_satisfied = False
    first = chain.partition(">")[0]
    for seen in known.observations.values():
        is_start = (seen.chain, seen.beta_over_lambda) == (first, None)
        if seen.q is None and seen.beta == beta and (is_start or seen.chain == chain):
            place = 0.0 if seen.beta_over_lambda is None else beta / seen.beta_over_lambda
            bounds = known.space.constraint
            margin = min(seen.rates.get(c.criterion, float("nan")) - c.at_least for c in bounds)
            trained.append((place, margin))
            is_satisfied = is_satisfied or (seen.satisfied and place < path.lambdas[-1])
    secure = crossing(path.lambdas, _margins(known, path.low), 0.0)
    return _SearchedPath(chain, beta, target, objective, secure, tuple(sorted(trained)), is_satisfied)


def _margins(known: Known, curves: Mapping[str, Floats]) -> Floats:
    """The smallest distance of a path's criteria from their bounds; positive where all are satisfied."""
    margins = [curves[c.criterion] - c.at_least for c in known.space.constraint]
    return np.asarray(np.min(margins, axis=0))


def _next(known: Known, path: _SearchedPath) -> Proposal | None:
    """The next policy on a path; None if it is solved."""
    bounds = _bounds(known)
    largest = known.paths[path.chain, path.beta].lambdas[-1]
    near = _TOLERANCE * largest
    places = [place for place, _ in path.trained]
    if not _is_near(path.target, places, near):
        place, step = _safeguarded(path.target, path.trained)
        if not _is_near(place, places, near):
            return _proposal(known, path, place, f"{step} for {bounds}")
    if not np.isnan(path.secure) and not path.is_satisfied and not _is_near(path.secure, places, near):
        return _proposal(known, path, path.secure, f"the lower edge of the preview's band reaches {bounds}")
    return None


def _is_near(place: float, places: list[float], distance: float) -> bool:
    return any(abs(place - other) <= distance for other in places)


def _safeguarded(target: float, trained: tuple[tuple[float, float], ...]) -> tuple[float, str]:
    """lambda* of the preview if measured policies do not contradict it, else a secant step between these.

    Args:
        target: lambda* of the preview.
        trained: lambda and margin of the policies that ended, ascending.
    """
    violating = [pair for pair in trained if pair[1] < 0]
    low = max(violating, default=(0.0, float("nan")))
    high = min((pair for pair in trained if pair[1] >= 0 and pair[0] > low[0]), default=None)
    if high is None or low[0] < target < high[0]:
        return target, "the preview's lambda*"
    share = low[1] / (low[1] - high[1]) if low[1] < 0 else 0.5
    return low[0] + float(np.clip(share, _EDGE, 1 - _EDGE)) * (high[0] - low[0]), "a step between two measured policies"


def _proposal(known: Known, path: _SearchedPath, place: float, reason: str) -> Proposal | None:
    """The policy at a lambda, if the space allows its KL parameter."""
    smallest, largest = known.search.beta_over_lambda
    ratio = rounded(float(np.clip(path.beta / max(place, 1e-12), smallest, largest)))
    proposal = Proposal(
        chain=path.chain, beta=path.beta, beta_over_lambda=ratio, reason=f"lambda {path.beta / ratio:.3g}: {reason}"
    )
    return None if known.is_known(proposal) else proposal
