"""The `llm` judge: every pair in both presentation orders, through the ledger, on an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from sacpo.hashing import content_id
from sacpo.judges.call_batch import CallStats, Reply
from sacpo.judges.chat_client import connection_fields
from sacpo.judges.endpoint import Call, Endpoint
from sacpo.judges.ledger import Ledger, Meter
from sacpo.judges.llm import ask
from sacpo.judges.token_probabilities import VerdictProbabilities
from sacpo.judges.verdicts import ORDERS, AnswerPair, JudgeFunction, Order, Outcome, Verdict
from sacpo.spaces.evaluation import LLMJudge


def chat(
    judge: LLMJudge,
    *,
    rubric: str,
    criterion: str,
    ledger: Path,
    run: str,
    writer: str,
    report_stats: Callable[[CallStats], None],
    ask_equal: bool,
) -> JudgeFunction:
    """A judge that asks a chat model.

    Args:
        judge: The judge's settings.
        rubric: Text that says what makes an answer better.
        criterion: The criterion; the limits of calls count for each criterion by itself.
        ledger: Folder of all ledgers, meters and slots of a store.
        run: Id of the sweep run; the limits of calls count over a run.
        writer: Name of this writer's file in the ledger: the step's id.
        report_stats: Receives the facts about the calls that were made.
        ask_equal: Whether two equal answers are asked about too; otherwise they are a tie without a call.
    """
    calls = judge.calls
    endpoint = Endpoint(
        **connection_fields(judge),
        temperature=judge.temperature,
        max_tokens=judge.max_tokens,
        seed=judge.seed,
        response_format=judge.response_format is not None,
        system_role=judge.system_role,
        reasons=judge.reasons,
        probabilities=judge.verdicts == "probabilities",
        rubric=rubric,
    )
    budget = content_id("judge", {**endpoint.address, "criterion": criterion})
    meter = Meter(ledger / "runs" / run / budget, calls.max_calls, calls.max_spend, endpoint.prices)
    slots = ledger / "runs" / run / content_id("endpoint", endpoint.address)

    def judge_pairs(pairs: list[AnswerPair]) -> list[Verdict]:
        equal = [i for i, pair in enumerate(pairs) if pair.policy == pair.baseline and not ask_equal]
        questions = [
            (i, order, repeat)
            for i, pair in enumerate(pairs)
            if ask_equal or pair.policy != pair.baseline
            for order in ORDERS
            for repeat in range(judge.repeats)
        ]
        book = Ledger(ledger / content_id("ledger", endpoint.identity()), f"{writer}-{run[:8]}-{os.getpid()}")
        replies, stats = ask(
            [_call(pairs[i], order, repeat) for i, order, repeat in questions], endpoint, book, meter, slots
        )
        report_stats(stats)
        verdicts = [_verdict(*question, reply) for question, reply in zip(questions, replies, strict=True)]
        verdicts += [Verdict(i, "none", 0, "tie", "the answers are equal", attempts=0) for i in equal]
        return sorted(verdicts, key=lambda v: v.pair)

    return judge_pairs


def _call(pair: AnswerPair, order: Order, repeat: int) -> Call:
    shown = (pair.policy, pair.baseline) if order == "policy_first" else (pair.baseline, pair.policy)
    return Call(pair.prompt, *shown, repeat)


def _verdict(pair: int, order: Order, repeat: int, reply: Reply) -> Verdict:
    outcome: Outcome
    if reply.outcome in ("first", "second"):
        outcome = "win" if (reply.outcome == "first") == (order == "policy_first") else "loss"
    else:
        outcome = reply.outcome  # type: ignore[assignment]  # tie, unparsable, unavailable: the same words
    score = no_verdict_mass = None
    if reply.probabilities is not None:
        probabilities = VerdictProbabilities(**reply.probabilities)
        score = probabilities.score if order == "policy_first" else 1 - probabilities.score
        no_verdict_mass = probabilities.none
    return Verdict(
        pair,
        order,
        repeat,
        outcome,
        reply.raw,
        reply.latency,
        reply.attempts,
        reply.prompt_tokens,
        reply.completion_tokens,
        refused=reply.refused,
        score=score,
        no_verdict_mass=no_verdict_mass,
    )
