"""The synthetic world's gold judge with faults of known size, to hold every statistic against the truth."""

from __future__ import annotations

import hashlib
import math

from sacpo.judges.scalar import outcome
from sacpo.judges.verdicts import ORDERS, Judge, Order, Outcome, Pair, Verdict
from sacpo.synthetic.world import gold_score


def noisy(criterion: str, *, error: float, order_bias: float, repeats: int, seed: int) -> Judge:
    """A judge that prefers the answer shown first with probability `order_bias`, without looking, and otherwise tells
    the gold outcome, turned round with probability `error`.

    Draws hang on the seed, the texts, the order and the repeat alone, so the same call has the same outcome always.
    """

    def call(pair: Pair, order: Order, repeat: int) -> Outcome:
        text = "\x1f".join((str(seed), criterion, pair.prompt, pair.policy, pair.baseline, order, str(repeat)))
        digest = hashlib.sha256(text.encode()).digest()
        bias, fault = (int.from_bytes(digest[i : i + 8], "big") / math.pow(2, 64) for i in (0, 8))
        if bias < order_bias:
            return "win" if order == "policy_first" else "loss"
        ours, theirs = (gold_score(pair.prompt, answer, criterion) for answer in (pair.policy, pair.baseline))
        truth = outcome(ours, theirs, 0.0)
        turned: dict[Outcome, Outcome] = {"win": "loss", "loss": "win"}
        return turned.get(truth, truth) if fault < error else truth

    def judge(pairs: list[Pair]) -> list[Verdict]:
        return [
            Verdict(i, order, repeat, found := call(pair, order, repeat), raw=found)
            for i, pair in enumerate(pairs)
            for order in ORDERS
            for repeat in range(repeats)
        ]

    return judge
