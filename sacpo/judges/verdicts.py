"""What every judge is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["win", "loss", "tie", "unparsable", "unavailable"]
Order = Literal["policy_first", "baseline_first", "none"]
ORDERS: tuple[Order, Order] = ("policy_first", "baseline_first")
DECIDED: dict[str, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}
"""The outcomes that count, and what each scores; the others are failures and no numbers."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt: the policy's and the baseline's."""

    prompt_id: str
    category: str
    sample: int
    prompt: str
    policy: str
    baseline: str


@dataclass(frozen=True)
class Verdict:
    """One judge call.

    Attributes:
        pair: Index of the pair in the list that the judge was given.
        order: Which answer was shown first; `none` where the answers are scored one by one.
        repeat: Number of the call among those of the same pair and order.
        outcome: For the policy.
        raw: What the judge said.
        latency: Seconds.
        attempts: Calls that were made for it; 0 where none was needed.
        prompt_tokens, completion_tokens: As the endpoint counted them.
        p_win: Calibrated probability that the policy's answer is preferred; none where the judge has no calibration.
    """

    pair: int
    order: Order
    repeat: int
    outcome: Outcome
    raw: str
    latency: float = 0.0
    attempts: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    p_win: float | None = None


Judge = Callable[[list[Pair]], list[Verdict]]


def order_inconsistency(calls: Iterable[tuple[Hashable, str, str]]) -> float | None:
    """Share of what was judged in both orders whose outcome differs with the order; none where nothing was.

    Args:
        calls: (what was judged, order, outcome) of every decided call.
    """
    outcomes: dict[Hashable, dict[str, str]] = {}
    for key, order, outcome in calls:
        if order != "none":
            outcomes.setdefault(key, {})[order] = outcome
    both = [set(seen.values()) for seen in outcomes.values() if len(seen) == 2]
    return sum(len(seen) > 1 for seen in both) / len(both) if both else None
