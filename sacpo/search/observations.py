"""What a search knows: the policies proposed so far, their win rates, and the preview of each path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sacpo.spaces.search import Proposal, Search
from sacpo.spaces.space import Space
from sacpo.spaces.stages import grid_stages, proposed_stages

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Observation:
    """A policy that ended, of the search or of the space's own chains and merges.

    Attributes:
        beta_over_lambda: KL parameter of its second stage; None if it has one stage.
        q: Weight of the second stage's policy in a p-sacpo merge; None for others.
        rates: Win rate of each criterion, averaged over seeds; empty if it failed.
        satisfied: It satisfies the constraints with their confidence.
    """

    chain: str
    beta: float
    beta_over_lambda: float | None
    q: float | None
    rates: Mapping[str, float]
    satisfied: bool = False


@dataclass(frozen=True)
class Path:
    """The preview of one chain and beta, averaged over seeds; arrays of shape (points,).

    Attributes:
        lambdas: Ascending, from 0 to the most conservative policy's.
        value: Estimate of each criterion.
        low: Lower edge of its 95 % band.
    """

    lambdas: Floats
    value: Mapping[str, Floats]
    low: Mapping[str, Floats]


@dataclass
class Known:
    """Everything that a search may depend on.

    Attributes:
        space: The space; it has a search.
        proposals: The policies proposed so far, in order.
        observations: The policies that ended, by (chain, beta, beta/lambda, q).
        paths: The previews by (chain, beta).
    """

    space: Space
    proposals: list[Proposal] = field(default_factory=list)
    observations: dict[tuple[object, ...], Observation] = field(default_factory=dict)
    paths: dict[tuple[str, float], Path] = field(default_factory=dict)

    @property
    def search(self) -> Search:
        """The space's search."""
        assert self.space.search is not None, "only a space with a search is searched"
        return self.space.search

    def is_known(self, proposal: Proposal) -> bool:
        """Whether a policy was proposed or has ended already."""
        return proposal.key in self.observations or any(p.key == proposal.key for p in self.proposals)

    @property
    def pending(self) -> list[Proposal]:
        """The proposals whose policies have not ended."""
        return [p for p in self.proposals if p.key not in self.observations]

    def spent(self, *further: Proposal) -> int:
        """Stages that the proposals, and further ones, need beyond those of the space, for each seed."""
        return len(proposed_stages([*self.proposals, *further]) - grid_stages(self.space))


def rounded(value: float) -> float:
    """A KL parameter with three significant digits, so that labels and commands are short."""
    return float(f"{value:.3g}")
