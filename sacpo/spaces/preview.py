"""The settings of the preview: the curve over lambda that is estimated from answers the policies gave."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sacpo.spaces.base import Strict


class Preview(Strict):
    """Estimate every criterion over lambda from the answers of each chain's policies; nothing further is trained."""

    stones: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=list,
        description="q of weight merges between stage 1 and the most conservative stage 2 of every chain, which are "
        "answered and judged like the p-sacpo merges of `merges`: stepping stones where the two policies are too far "
        "apart; the default is none",
    )
