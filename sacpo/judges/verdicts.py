"""The types that all judges share: pairs of answers, verdicts on them, and the judge as a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["win", "loss", "tie", "unparsable", "unavailable"]
"""Outcome for the policy. `unparsable` and `unavailable` are failures of the judge and never count as ties."""
Order = Literal["policy_first", "baseline_first", "none"]
"""Presentation order: which answer was shown first; `none` if the judge scores each answer by itself."""
ORDERS: tuple[Order, Order] = ("policy_first", "baseline_first")
SCORES: dict[str, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}
"""Score of each decided outcome. The other outcomes have no score and are left out of win rates."""
_ROUNDING = 1e-9  # scores this close to 0.5 are a tie: averages of scores are not exact


def outcome_of(score: float) -> Outcome:
    """The outcome that a score in [0, 1] is read as: a win above 0.5, a loss below it, otherwise a tie."""
    if abs(score - 0.5) <= _ROUNDING:
        return "tie"
    return "win" if score > 0.5 else "loss"


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt: the policy's and the baseline's.

    Attributes:
        prompt_id: Id of the prompt.
        category: Category of the prompt.
        sample: Number of the answer among the samples of one prompt.
        prompt: Text of the prompt.
        policy: The policy's answer.
        baseline: The baseline's answer.
    """

    prompt_id: str
    category: str
    sample: int
    prompt: str
    policy: str
    baseline: str


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on one pair of answers, in one presentation order and repeat.

    Attributes:
        pair: Index of the pair in the list that the judge received.
        order: Presentation order.
        repeat: Number of the call among the calls with the same pair and order.
        outcome: Outcome for the policy.
        raw: The judge's reply, its scores, or the reason of a failure.
        latency: Seconds.
        attempts: Calls made for this verdict; 0 if none was needed.
        prompt_tokens, completion_tokens: Tokens of these calls, as the endpoint counted them.
        p_win: Calibrated probability that the policy's answer is preferred; None if the judge is not calibrated.
        refused: The endpoint refused this pair for its content or length; the outcome is then `unavailable`.
        score: Score of the policy's answer in [0, 1], ties half: that of the outcome, unless the judge gives a
            probability. None if the verdict is not decided.
        no_verdict_mass: Probability that the judge model gave to tokens that state no verdict; None unless verdicts are
            read from its token probabilities.
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
    refused: bool = False
    score: float | None = None
    no_verdict_mass: float | None = None

    def __post_init__(self) -> None:
        if self.score is None:
            object.__setattr__(self, "score", SCORES.get(self.outcome))

    @property
    def decided_score(self) -> float:
        """The score of a decided verdict."""
        assert self.score is not None, f"a verdict that is {self.outcome} has no score"
        return self.score


JudgeFunction = Callable[[list[AnswerPair]], list[Verdict]]
"""Judges pairs of answers; returns at least one verdict per pair, ordered by pair."""


def policy_score(raw: str) -> float:
    """The score of the policy's answer, from the text of a verdict; NaN if an answer has no score.

    Args:
        raw: The text of a verdict by a judge that scores each answer by itself (`sacpo.judges.scalar`).
    """
    parts = raw.split(" ")
    try:
        return float(parts[0]) if len(parts) == 2 else math.nan
    except ValueError:
        return math.nan


def order_inconsistency(calls: Iterable[tuple[Hashable, str, str]]) -> float | None:
    """Fraction of items, judged in both presentation orders, whose outcome depends on the order.

    Args:
        calls: (item, order, outcome) of every decided call.

    Returns:
        The fraction, or None if no item was judged in both orders.
    """
    outcomes: dict[Hashable, dict[str, str]] = {}
    for item, order, outcome in calls:
        if order != "none":
            outcomes.setdefault(item, {})[order] = outcome
    judged_in_both = [by_order for by_order in outcomes.values() if len(by_order) == 2]
    inconsistent = sum(len(set(by_order.values())) > 1 for by_order in judged_in_both)
    return inconsistent / len(judged_in_both) if judged_in_both else None
