"""Chains of stages, written `dpo:helpfulness>dpo:harmlessness`."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from sacpo.spaces.methods import CHAIN_METHODS

_STAGE = re.compile(rf"^({'|'.join(CHAIN_METHODS)}):([a-z][a-z0-9_-]*)$")


def is_stage(text: str) -> bool:
    """Whether a text is METHOD:OBJECTIVE with a known method."""
    return _STAGE.match(text) is not None


def parse_chain(chain: str) -> list[tuple[str, str]]:
    """Split `dpo:helpfulness>kto:harmlessness` into `[(method, objective), ...]`.

    Raises:
        ValueError: a stage is not METHOD:OBJECTIVE with a method of `CHAIN_METHODS`.
    """
    stages = []
    for part in chain.split(">"):
        match = _STAGE.match(part.strip())
        if match is None:
            raise ValueError(
                f"stage {part.strip()!r} is not METHOD:OBJECTIVE with METHOD one of {', '.join(CHAIN_METHODS)}; "
                "write for example dpo:helpfulness>dpo:harmlessness"
            )
        stages.append((match[1], match[2]))
    return stages


def _valid_chain(chain: Any) -> Any:
    """The chain without spaces; values that are not text are left to the type check."""
    if not isinstance(chain, str):
        return chain
    return ">".join(f"{method}:{objective}" for method, objective in parse_chain(chain))


Chain = Annotated[str, BeforeValidator(_valid_chain)]
