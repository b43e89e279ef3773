"""Agreement between two judges, raw and beyond chance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sacpo.statistics.win_rate import Ids, resample_counts, resample_level, unseen_share

OUTCOMES = ("win", "tie", "loss")


@dataclass(frozen=True)
class Agreement:
    """Agreement between two judges.

    Attributes:
        n: Number of items that both judges decided.
        raw: Fraction of items with equal outcomes, in [0, 1].
        kappa: Cohen's kappa (1960): 1 for full agreement, 0 for the agreement that chance gives. NaN if chance alone
            gives full agreement, that is, if both judges gave one outcome to every item.
        kappa_low: Lower 95 % bound of kappa; NaN if kappa is NaN.
        kappa_high: Upper 95 % bound of kappa; NaN if kappa is NaN.
    """

    n: int
    raw: float
    kappa: float
    kappa_low: float
    kappa_high: float


def agreement(first: Sequence[str], second: Sequence[str], prompts: Ids) -> Agreement:
    """Compare two judges on the items that both decided.

    The interval is a percentile bootstrap over prompts, because items on one prompt are correlated. Resamples whose
    kappa is undefined are left out. If the judges never disagree, the lower bound is the kappa of two judges that
    disagree on the `unseen_share` of the items.

    Args:
        first: The first judge's outcome of each item: "win", "tie" or "loss".
        second: The second judge's outcomes, in the same order.
        prompts: The prompt id of each item (all ids of one type).

    Returns:
        Raw agreement and kappa; all NaN if there is no item.

    Raises:
        ValueError: The lengths differ, or an outcome is not one of the three.
    """
    if not len(first) == len(second) == len(prompts):
        raise ValueError(
            f"first, second and prompts must have the same length, not {len(first)}, {len(second)} and {len(prompts)}"
        )
    unknown = {*first, *second} - {*OUTCOMES}
    if unknown:
        raise ValueError(f"outcomes must be {', '.join(OUTCOMES)}, not {', '.join(map(repr, sorted(unknown)))}")
    if not len(first):
        return Agreement(0, *[float("nan")] * 4)
    distinct, prompt_index = np.unique(np.asarray(prompts), return_inverse=True)
    tables = np.zeros((distinct.size, len(OUTCOMES), len(OUTCOMES)))
    for cell in zip(prompt_index, map(OUTCOMES.index, first), map(OUTCOMES.index, second), strict=True):
        tables[cell] += 1
    total = tables.sum(axis=0)
    kappa = float(_kappa(total))
    raw = float(np.trace(total) / total.sum())
    if np.isnan(kappa):
        low = high = float("nan")
    elif raw == 1:
        by_chance = float(((total.sum(axis=0) / total.sum()) ** 2).sum())
        low, high = max(-1.0, 1 - unseen_share(distinct.size) / (1 - by_chance)), 1.0
    else:
        tail = (1 - resample_level(distinct.size)) / 2
        resampled = _kappa(np.tensordot(resample_counts(distinct.size), tables, axes=1))
        low, high = map(float, np.nanquantile(resampled, [tail, 1 - tail]))
    return Agreement(len(first), raw, kappa, low, high)


def _kappa(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's kappa of contingency tables of shape (..., outcomes, outcomes)."""
    fractions = tables / tables.sum(axis=(-2, -1), keepdims=True)
    agreed = np.trace(fractions, axis1=-2, axis2=-1)
    by_chance = (fractions.sum(axis=-1) * fractions.sum(axis=-2)).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray((agreed - by_chance) / (1 - by_chance))
