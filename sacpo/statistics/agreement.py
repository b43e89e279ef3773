"""How far two judges agree beyond chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sacpo.statistics.win_rate import Ids, resample_counts, resample_level, unseen_share

OUTCOMES = ("win", "tie", "loss")


@dataclass(frozen=True)
class Agreement:
    """Agreement of two judges.

    Attributes:
        n: Number of items that both decided.
        raw: Share of items with one outcome, in [0, 1].
        kappa: Cohen's kappa (1960), 1 for full agreement and 0 for that of chance; NaN where chance alone agrees fully,
            as when both judges gave one outcome throughout.
        kappa_low: Lower 95 % bound of kappa; NaN where kappa is.
        kappa_high: Upper 95 % bound of kappa; NaN where kappa is.
    """

    n: int
    raw: float
    kappa: float
    kappa_low: float
    kappa_high: float


def agreement(first: Sequence[str], second: Sequence[str], prompts: Ids) -> Agreement:
    """Compare two judges on the items that both decided.

    The interval is a percentile bootstrap over prompts, since items on one prompt are alike; resamples in which kappa
    is not defined are left out. Where the judges never disagree, the lower bound is the kappa of judges that disagree
    on the `unseen_share` of the items.

    Args:
        first: The one judge's outcome of each item: "win", "tie" or "loss".
        second: The other's, in the same order.
        prompts: The prompt id of each item (ids of one type).

    Returns:
        Raw agreement and kappa; all NaN without items.

    Raises:
        ValueError: The lengths differ, or an outcome is none of the three.
    """
    if not len(first) == len(second) == len(prompts):
        raise ValueError(f"{len(first)} and {len(second)} outcomes and {len(prompts)} prompts must be of one length")
    unknown = {*first, *second} - {*OUTCOMES}
    if unknown:
        raise ValueError(f"outcomes are {', '.join(OUTCOMES)}, not {', '.join(map(repr, sorted(unknown)))}")
    if not len(first):
        return Agreement(0, *[float("nan")] * 4)
    distinct, prompt = np.unique(np.asarray(prompts), return_inverse=True)
    tables = np.zeros((distinct.size, len(OUTCOMES), len(OUTCOMES)))
    for place in zip(prompt, map(OUTCOMES.index, first), map(OUTCOMES.index, second), strict=True):
        tables[place] += 1
    total = tables.sum(axis=0)
    value = float(_kappa(total))
    raw = float(np.trace(total) / total.sum())
    if np.isnan(value):
        low = high = float("nan")
    elif raw == 1:
        by_chance = float(((total.sum(axis=0) / total.sum()) ** 2).sum())
        low, high = max(-1.0, 1 - unseen_share(distinct.size) / (1 - by_chance)), 1.0
    else:
        tail = (1 - resample_level(distinct.size)) / 2
        resampled = _kappa(np.tensordot(resample_counts(distinct.size), tables, axes=1))
        low, high = map(float, np.nanquantile(resampled, [tail, 1 - tail]))
    return Agreement(len(first), raw, value, low, high)


def _kappa(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's kappa of contingency tables (..., outcomes, outcomes)."""
    shares = tables / tables.sum(axis=(-2, -1), keepdims=True)
    agreed = np.trace(shares, axis1=-2, axis2=-1)
    by_chance = (shares.sum(axis=-1) * shares.sum(axis=-2)).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray((agreed - by_chance) / (1 - by_chance))
