"""Asks a judge model for many verdicts at once, and tells failures from verdicts.

A failed call is asked again; one that stays without a verdict is `unparsable` or `unavailable`, never a tie. Decided
verdicts go to the ledger the moment they are there, so nothing that was paid for is lost to what fails later.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from sacpo.judges.endpoint import Attempt, Call, Client, Endpoint, Outcome
from sacpo.judges.ledger import DECIDED, BudgetExceeded, Ledger, Meter, call_key, price, take_slot

__all__ = ["Call", "Endpoint", "Facts", "Outcome", "Reply", "ask"]

BACKOFF_START = 0.5  # seconds, doubled with every try of a call; the wait is drawn between 0 and that
BACKOFF_CAP = 30.0
SLOT_POLL = 0.05
OUTAGE_S = 180.0  # an endpoint that has answered before is waited for so long, and costs no call its attempts


@dataclass(frozen=True)
class Reply:
    """What came of a call.

    Args:
        outcome: Which answer is better, or why there is no verdict.
        raw: The judge's last reply, or what came in its place.
        latency: Seconds of the last attempt.
        attempts: HTTP attempts made.
        prompt_tokens: Of all attempts, as far as the endpoint said.
        completion_tokens: The same.
        cached: It is from the ledger, or a call with the same content was in this batch.
    """

    outcome: Outcome
    raw: str
    latency: float
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    cached: bool = False


@dataclass
class Facts:
    """What was really used, by this batch of calls.

    Args:
        models: Names that the endpoint gave for the model, also of verdicts from the ledger.
        fingerprints: The endpoint's `system_fingerprint` values.
        structured: A reply format was asked for and not refused. An endpoint may still have ignored it.
        calls: HTTP attempts made now.
        from_ledger: Calls answered without any.
        prompt_tokens: Of the attempts made now.
        completion_tokens: The same.
        spend: Of the attempts made now, at the endpoint's prices.
    """

    models: set[str] = field(default_factory=set)
    fingerprints: set[str] = field(default_factory=set)
    structured: bool = True
    calls: int = 0
    from_ledger: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spend: float = 0.0

    def saw(self, model: str | None, fingerprint: str | None) -> None:
        """Note what the endpoint said about itself."""
        self.models |= {model} if model else set()
        self.fingerprints |= {fingerprint} if fingerprint else set()


def ask(
    calls: Sequence[Call], endpoint: Endpoint, ledger: Ledger, meter: Meter, slots_folder: Path
) -> tuple[list[Reply], Facts]:
    """Get a reply to every call, from the ledger or from the endpoint.

    Raises:
        StepError: the endpoint refuses (key, model, settings), or the key's environment variable is not set.
        BudgetExceeded: a limit of the run is reached. Calls under way have ended and their verdicts are kept.
    """
    judge = endpoint.identity()
    keys = [call_key(judge, call.prompt, call.first, call.second, call.repeat) for call in calls]
    known = {key: row for key in keys if (row := ledger.get(key)) is not None}
    todo = {key: call for key, call in zip(keys, calls, strict=True) if key not in known}
    batch = _Batch(todo, endpoint, ledger, meter, slots_folder)
    if todo:
        asyncio.run(batch.run())
    batch.facts.from_ledger = sum(key in known for key in keys)
    found = dict(batch.replies)
    for key, row in known.items():
        batch.facts.saw(row["model"], row["fingerprint"])
        found[key] = Reply(**{part.name: row[part.name] for part in fields(Reply)})
    asked = {key: i for i, key in reversed(list(enumerate(keys)))}  # where a content stands first
    return [replace(found[key], cached=key in known or asked[key] < i) for i, key in enumerate(keys)], batch.facts


class _Batch:
    """The calls of one `ask` and their workers."""

    def __init__(
        self, todo: dict[str, Call], endpoint: Endpoint, ledger: Ledger, meter: Meter, slots_folder: Path
    ) -> None:
        self.pending = deque(todo.items())
        self.endpoint, self.ledger, self.meter, self.slots_folder = endpoint, ledger, meter, slots_folder
        self.replies: dict[str, Reply] = {}
        self.facts = Facts()
        self.over: BudgetExceeded | None = None
        self.heard = time.monotonic() if len(ledger) else None  # when the endpoint last answered anybody

    async def run(self) -> None:
        """Work until all is done, or an error ends it."""
        self.turn = asyncio.Lock()  # one worker looks for a slot at a time
        self.client = Client(self.endpoint)
        count = min(self.endpoint.concurrency, len(self.pending))
        workers = [asyncio.create_task(self._work()) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self.client.close()
        self.facts.structured = self.client.structured
        if self.over is not None:
            raise self.over

    async def _work(self) -> None:
        slot = None
        try:
            async with self.turn:
                while self.pending and (slot := take_slot(self.slots_folder, self.endpoint.concurrency)) is None:
                    await asyncio.sleep(SLOT_POLL)
            while self.pending:
                await self._judge(*self.pending.popleft())
        except BudgetExceeded as error:  # the others end what is under way: it is paid for
            self.over = error
            self.pending.clear()
        finally:
            if slot is not None:
                os.close(slot)

    async def _judge(self, key: str, call: Call) -> None:
        """Ask until there is a verdict or the attempts are used up."""
        attempts: list[Attempt] = []
        used = 0
        while True:
            while (silence := self.client.quiet_until - time.monotonic()) > 0:
                await asyncio.sleep(silence + random.uniform(0, BACKOFF_START))
            self.meter.before_call()
            started = time.monotonic()
            last = await self.client.attempt(call)
            latency = time.monotonic() - started
            self._count(last)
            attempts.append(last)
            used += not (last.free or self._away(last, started))
            if last.outcome in DECIDED or used >= self.endpoint.attempts:
                break
            if not last.free:
                pause = random.uniform(0, min(BACKOFF_CAP, BACKOFF_START * 2.0 ** (len(attempts) - 1)))
                await asyncio.sleep(max(pause, last.retry_after))
        reply = Reply(
            outcome=last.outcome,
            raw=last.raw,
            latency=latency,
            attempts=len(attempts),
            prompt_tokens=sum(attempt.prompt_tokens for attempt in attempts),
            completion_tokens=sum(attempt.completion_tokens for attempt in attempts),
        )
        self.replies[key] = reply
        if reply.outcome in DECIDED:
            self.ledger.add(key, asdict(reply) | {"model": last.model, "fingerprint": last.fingerprint})

    def _away(self, attempt: Attempt, began: float) -> bool:
        """Whether it is not this call that failed: nobody has been answered since it began, for a while at most."""
        now = time.monotonic()
        if not attempt.away:
            self.heard = now
            return False
        return self.heard is not None and self.heard <= began and now - self.heard < OUTAGE_S

    def _count(self, attempt: Attempt) -> None:
        self.meter.after_call(attempt.prompt_tokens, attempt.completion_tokens)
        facts, prices = self.facts, (self.endpoint.price_prompt, self.endpoint.price_completion)
        facts.calls += 1
        facts.prompt_tokens += attempt.prompt_tokens
        facts.completion_tokens += attempt.completion_tokens
        facts.spend += price(attempt.prompt_tokens, attempt.completion_tokens, prices)
        facts.saw(attempt.model, attempt.fingerprint)
