"""The `noisy` judge: the synthetic world's gold judge with errors of known size, to check statistics with."""

from __future__ import annotations

import hashlib
import math

from sacpo.judges.scalar import outcome
from sacpo.judges.verdicts import ORDERS, AnswerPair, JudgeFunction, Order, Outcome, Verdict
from sacpo.synthetic.world import gold_score


def noisy(criterion: str, *, error: float, order_bias: float, repeats: int, seed: int) -> JudgeFunction:
    """A gold judge with order bias and random errors.

    The random numbers depend only on the seed, the criterion, the texts, the order and the repeat, so equal calls have
    equal outcomes.

    Args:
        criterion: The criterion of the gold scores.
        error: Probability that a win is reported as a loss, or a loss as a win.
        order_bias: Probability that a call prefers the answer shown first, whatever the answers are.
        repeats: Calls per pair and presentation order.
        seed: Seed of the random numbers.
    """

    def call(pair: AnswerPair, order: Order, repeat: int) -> Outcome:
        text = "\x1f".join((str(seed), criterion, pair.prompt, pair.policy, pair.baseline, order, str(repeat)))
        digest = hashlib.sha256(text.encode()).digest()
        bias_draw, error_draw = (int.from_bytes(digest[i : i + 8], "big") / math.pow(2, 64) for i in (0, 8))
        if bias_draw < order_bias:
            return "win" if order == "policy_first" else "loss"
        policy_score, baseline_score = (
            gold_score(pair.prompt, answer, criterion) for answer in (pair.policy, pair.baseline)
        )
        truth = outcome(policy_score, baseline_score, 0.0)
        reversed_outcomes: dict[Outcome, Outcome] = {"win": "loss", "loss": "win"}
        return reversed_outcomes.get(truth, truth) if error_draw < error else truth

    def judge(pairs: list[AnswerPair]) -> list[Verdict]:
        return [
            Verdict(i, order, repeat, result := call(pair, order, repeat), raw=result)
            for i, pair in enumerate(pairs)
            for order in ORDERS
            for repeat in range(repeats)
        ]

    return judge
