"""The `llm` judge: every pair in both presentation orders, through the ledger, on an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sacpo.judges.ledger import Ledger, Meter
from sacpo.judges.llm import Call, Endpoint, Reply, ask
from sacpo.judges.verdicts import ORDERS, Judge, Order, Outcome, Pair, Verdict
from sacpo.planning.identity import content_id


def chat(
    payload: dict[str, Any],
    local: dict[str, Any],
    ledger: Path,
    run: str,
    name: str,
    effective: dict[str, Any],
    a_a: bool,
) -> Judge:
    """A judge for one step.

    Args:
        payload: The step's: `judge`, `rubric`, `criterion`.
        local: How the endpoint is reached: `base_url`, `api_key_env`, `calls`.
        ledger: Folder of all ledgers, meters and slots of a store.
        run: Id of the sweep run, over which limits count.
        name: The step's id, for the ledger's file.
        effective: Gets what was really used.
        a_a: Whether what is the same is asked too; otherwise two equal answers are a tie that needs no call.
    """
    judge, calls = payload["judge"], local["calls"]
    prices = calls["price_prompt"] or 0.0, calls["price_completion"] or 0.0
    endpoint = Endpoint(
        **{key: judge[key] for key in ("model", "revision", "temperature", "max_tokens", "seed")},
        rubric=payload["rubric"],
        base_url=local["base_url"],
        api_key_env=local["api_key_env"],
        concurrency=calls["concurrency"],
        timeout_s=calls["timeout"],
        attempts=calls["attempts"],
        price_prompt=prices[0],
        price_completion=prices[1],
    )
    where = {"model": endpoint.model, "base_url": endpoint.base_url}
    asked = content_id("judge", {**where, "criterion": payload["criterion"]})
    meter = Meter(ledger / "runs" / run / asked, calls["max_calls"], calls["max_spend"], prices)
    slots = ledger / "runs" / run / content_id("endpoint", where)

    def judge_pairs(pairs: list[Pair]) -> list[Verdict]:
        equal = [i for i, pair in enumerate(pairs) if pair.policy == pair.baseline and not a_a]
        wanted = [
            (i, order, repeat)
            for i, pair in enumerate(pairs)
            if a_a or pair.policy != pair.baseline
            for order in ORDERS
            for repeat in range(judge["repeats"])
        ]
        book = Ledger(ledger / content_id("ledger", endpoint.identity()), f"{name}-{run[:8]}-{os.getpid()}")
        replies, facts = ask(
            [_call(pairs[i], order, repeat) for i, order, repeat in wanted], endpoint, book, meter, slots
        )
        effective["judge"] = {key: sorted(v) if isinstance(v, set) else v for key, v in asdict(facts).items()}
        verdicts = [_verdict(*key, reply) for key, reply in zip(wanted, replies, strict=True)]
        verdicts += [Verdict(i, "none", 0, "tie", "the answers are equal", attempts=0) for i in equal]
        return sorted(verdicts, key=lambda v: v.pair)

    return judge_pairs


def _call(pair: Pair, order: Order, repeat: int) -> Call:
    shown = (pair.policy, pair.baseline) if order == "policy_first" else (pair.baseline, pair.policy)
    return Call(pair.prompt, *shown, repeat)


def _verdict(pair: int, order: Order, repeat: int, reply: Reply) -> Verdict:
    found: Outcome
    if reply.outcome in ("first", "second"):
        found = "win" if (reply.outcome == "first") == (order == "policy_first") else "loss"
    else:
        found = reply.outcome  # type: ignore[assignment]  # tie, unparsable, unavailable: the same words
    return Verdict(
        pair,
        order,
        repeat,
        found,
        reply.raw,
        reply.latency,
        reply.attempts,
        reply.prompt_tokens,
        reply.completion_tokens,
    )
