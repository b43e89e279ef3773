"""The `noisy` judge: the synthetic world's gold judge with errors of known size, to check statistics with."""

from __future__ import annotations

import hashlib
import math

from sacpo.judges.scalar import outcome
from sacpo.judges.verdicts import ORDERS, SCORES, AnswerPair, JudgeFunction, Order, Outcome, Verdict, outcome_of
from sacpo.synthetic.world import gold_score


def noisy(
    criterion: str, *, error: float, order_bias: float, repeats: int, seed: int, probabilities: bool = False
) -> JudgeFunction:
    """A gold judge with order bias and random errors.

    The random numbers depend only on the seed, the criterion, the texts, the order and the repeat, so equal calls have
    equal outcomes.

    Args:
        criterion: The criterion of the gold scores.
        error: Probability that a win is reported as a loss, or a loss as a win.
        order_bias: Probability that a call prefers the answer shown first, whatever the answers are.
        repeats: Calls per pair and presentation order.
        seed: Seed of the random numbers.
        probabilities: A verdict's score is the probability that a call wins (ties half), not the outcome of one call.
    """

    def truth(pair: AnswerPair) -> Outcome:
        policy, baseline = (gold_score(pair.prompt, answer, criterion) for answer in (pair.policy, pair.baseline))
        return outcome(policy, baseline, 0.0)

    def call(pair: AnswerPair, order: Order, repeat: int) -> Outcome:
        text = "\x1f".join((str(seed), criterion, pair.prompt, pair.policy, pair.baseline, order, str(repeat)))
        digest = hashlib.sha256(text.encode()).digest()
        bias_draw, error_draw = (int.from_bytes(digest[i : i + 8], "big") / math.pow(2, 64) for i in (0, 8))
        if bias_draw < order_bias:
            return "win" if order == "policy_first" else "loss"
        sound = truth(pair)
        reversed_outcomes: dict[Outcome, Outcome] = {"win": "loss", "loss": "win"}
        return reversed_outcomes.get(sound, sound) if error_draw < error else sound

    def expected(pair: AnswerPair, order: Order) -> float:
        """Mean score of the calls on a pair in one order."""
        sound = SCORES[truth(pair)]
        shown_first = float(order == "policy_first")
        return order_bias * shown_first + (1 - order_bias) * ((1 - error) * sound + error * (1 - sound))

    def verdict(i: int, pair: AnswerPair, order: Order, repeat: int) -> Verdict:
        if probabilities:
            score = expected(pair, order)
            return Verdict(i, order, repeat, outcome_of(score), raw=f"{score:.6g}", score=score)
        result = call(pair, order, repeat)
        return Verdict(i, order, repeat, result, raw=result)

    def judge(pairs: list[AnswerPair]) -> list[Verdict]:
        return [
            verdict(i, pair, order, repeat)
            for i, pair in enumerate(pairs)
            for order in ORDERS
            for repeat in range(repeats)
        ]

    return judge
