"""The trainings that chains and merges of a space share and need, counted without a plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from sacpo.spaces.chains import parse_chain
from sacpo.spaces.grid import ChainGrid, LogitMix, NaiveMerge, Parent, PSacpo
from sacpo.spaces.search import Proposal
from sacpo.spaces.space import Space

Stage = tuple[str, tuple[float, ...]]
"""The chain up to a stage, and the KL parameters up to it: one training for each seed."""


def stages(chain: str, kl_parameters: tuple[float, ...]) -> Iterator[Stage]:
    """The stages of one policy."""
    names = [f"{method}:{objective}" for method, objective in parse_chain(chain)]
    for length in range(1, len(kl_parameters) + 1):
        yield ">".join(names[:length]), kl_parameters[:length]


def proposed_stages(proposals: Iterable[Proposal]) -> set[Stage]:
    """The stages that proposals need."""
    return {stage for p in proposals for stage in stages(p.chain, (p.beta, p.beta_over_lambda))}


def grid_stages(space: Space) -> set[Stage]:
    """The stages that the chains and merges of a space need."""
    grids: list[ChainGrid | PSacpo | LogitMix | Parent] = [*space.chains]
    for merge in space.merges:
        grids += [merge.first, merge.second] if isinstance(merge, NaiveMerge) else [merge]
    result: set[Stage] = set()
    for grid in grids:
        betas = [grid.beta] if isinstance(grid, Parent) else grid.beta
        for kl_parameters in itertools.product(betas, *(grid.beta_over_lambda or [])):
            result.update(stages(grid.chain, kl_parameters))
    return result


def most_policies(space: Space) -> int:
    """The largest number of policies that the space's search can add, for each seed.

    Every policy that is not a merge costs a training. A merge by Optuna costs one too; merges of `bridge` and the
    preview's stones are added once for each chain and beta.
    """
    search = space.search
    if search is None:
        return 0
    paths = min(len(search.chains) * len(search.beta), search.trainings)
    merges = len(search.q) if search.method == "bridge" else 0
    stones = 0 if space.preview is None else len(space.preview.stones)
    return search.trainings + paths * (merges + stones)
