"""The proposal of a space's search, by its method."""

from __future__ import annotations

from typing import assert_never

from sacpo.search import bridge, optuna_search
from sacpo.search.observations import Known
from sacpo.spaces.search import BridgeSearch, OptunaSearch, Proposal


def propose(known: Known) -> Proposal | None:
    """The next policy; None if results of others are needed first, or if the search has ended.

    Raises:
        SacpoError: the method needs a library that is not installed.
    """
    match known.space.search:
        case BridgeSearch():
            return bridge.propose(known)
        case OptunaSearch():
            return optuna_search.propose(known)
        case None:
            return None
        case _ as unknown:
            assert_never(unknown)


def ending(known: Known) -> str:
    """Why a search has ended."""
    return bridge.ending(known) if isinstance(known.space.search, BridgeSearch) else "no training is left"
