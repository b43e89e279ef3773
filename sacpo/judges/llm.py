"""Makes many calls to a judge model at once, with retries, and separates failures from preferences.

A failed call is retried. A call without a preference after its last attempt is `unparsable` or `unavailable`, and never
a tie. Every preference is written to the ledger at once, so a later failure loses no reply that was paid for.
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

from sacpo.judges.endpoint import Attempt, Call, Client, Endpoint, ReplyOutcome
from sacpo.judges.ledger import BudgetExceeded, Ledger, Meter, call_key, price, take_slot
from sacpo.judges.replies import PREFERENCES

__all__ = ["Call", "CallStats", "Endpoint", "Reply", "ReplyOutcome", "ask"]

BACKOFF_START = 0.5  # seconds; doubled with every attempt of a call, and a pause is drawn between 0 and the result
BACKOFF_CAP = 30.0  # seconds
SLOT_POLL = 0.05  # seconds between two searches for a free slot
OUTAGE_S = 180.0
"""Seconds for which calls wait for an endpoint that replied before. Attempts during such an outage are not counted."""


@dataclass(frozen=True)
class Reply:
    """Result of one call.

    Attributes:
        outcome: The preferred answer, or the failure of the last attempt.
        raw: The judge's last reply, or a description of the failure.
        latency: Seconds of the last attempt.
        attempts: HTTP attempts made.
        prompt_tokens: Prompt tokens of all attempts, as far as the endpoint reported them.
        completion_tokens: Completion tokens of all attempts, as far as the endpoint reported them.
        cached: The reply came from the ledger, or from an earlier call of the batch with the same content.
    """

    outcome: ReplyOutcome
    raw: str
    latency: float
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    cached: bool = False


@dataclass
class CallStats:
    """Facts about a batch of calls and the endpoint.

    Attributes:
        models: Model names that the endpoint reported, including those of replies from the ledger.
        fingerprints: The endpoint's `system_fingerprint` values, including those of replies from the ledger.
        structured: The JSON schema for replies was requested and not refused. An endpoint can still have ignored it.
        calls: HTTP attempts made now.
        from_ledger: Calls whose reply came from the ledger.
        prompt_tokens: Prompt tokens of the attempts made now.
        completion_tokens: Completion tokens of the attempts made now.
        spend: Price of the attempts made now, at the endpoint's prices.
    """

    models: set[str] = field(default_factory=set)
    fingerprints: set[str] = field(default_factory=set)
    structured: bool = True
    calls: int = 0
    from_ledger: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spend: float = 0.0

    def add_identity(self, model: str | None, fingerprint: str | None) -> None:
        """Add the model name and the fingerprint of a reply; None is skipped."""
        self.models |= {model} if model else set()
        self.fingerprints |= {fingerprint} if fingerprint else set()


def ask(
    calls: Sequence[Call], endpoint: Endpoint, ledger: Ledger, meter: Meter, slots_folder: Path
) -> tuple[list[Reply], CallStats]:
    """Get a reply to every call, from the ledger or from the endpoint. Equal calls are made once.

    Args:
        calls: The calls.
        endpoint: The judge model.
        ledger: Stored replies; new ones are added.
        meter: Limits of calls and spend.
        slots_folder: Folder of the slots that limit the number of concurrent calls.

    Returns:
        The replies in the order of the calls, and facts about the batch.

    Raises:
        StepError: the endpoint refuses the key, the model or a setting; or the key's environment variable is not set.
        BudgetExceeded: a limit of the run is reached. Calls in flight were completed and their preferences stored.
    """
    judge = endpoint.identity()
    keys = [call_key(judge, call.prompt, call.first, call.second, call.repeat) for call in calls]
    stored = {key: row for key in keys if (row := ledger.get(key)) is not None}
    new_calls = {key: call for key, call in zip(keys, calls, strict=True) if key not in stored}
    batch = _Batch(new_calls, endpoint, ledger, meter, slots_folder)
    if new_calls:
        asyncio.run(batch.run())
    stats, replies = batch.stats, dict(batch.replies)
    stats.from_ledger = sum(key in stored for key in keys)
    for key, row in stored.items():
        stats.add_identity(row["model"], row["fingerprint"])
        replies[key] = Reply(**{part.name: row[part.name] for part in fields(Reply)})
    first_position = {key: i for i, key in reversed(list(enumerate(keys)))}
    return [replace(replies[key], cached=key in stored or first_position[key] < i) for i, key in enumerate(keys)], stats


class _Batch:
    """The new calls of one `ask`, and the workers that make them.

    Attributes:
        replies: Replies so far, by key.
        stats: Facts about the attempts so far.
        budget_error: The error of a limit that was reached.
        last_reached_at: Time (monotonic clock) at which an attempt last reached the endpoint; None before the first
            such attempt. The start counts as one if the ledger has replies, since the endpoint was once up.
    """

    def __init__(
        self, calls: dict[str, Call], endpoint: Endpoint, ledger: Ledger, meter: Meter, slots_folder: Path
    ) -> None:
        self.pending = deque(calls.items())
        self.endpoint, self.ledger, self.meter, self.slots_folder = endpoint, ledger, meter, slots_folder
        self.replies: dict[str, Reply] = {}
        self.stats = CallStats()
        self.budget_error: BudgetExceeded | None = None
        self.last_reached_at = time.monotonic() if len(ledger) else None

    async def run(self) -> None:
        """Make all calls, unless an error ends the batch."""
        self.slot_search = asyncio.Lock()  # one worker at a time searches for a free slot
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
        self.stats.structured = self.client.structured
        if self.budget_error is not None:
            raise self.budget_error

    async def _work(self) -> None:
        """Take a slot, then make pending calls until none is left."""
        slot = None
        try:
            async with self.slot_search:
                while self.pending and (slot := take_slot(self.slots_folder, self.endpoint.concurrency)) is None:
                    await asyncio.sleep(SLOT_POLL)
            while self.pending:
                await self._judge(*self.pending.popleft())
        except BudgetExceeded as error:
            # The other workers complete their calls in flight, which are paid for.
            self.budget_error = error
            self.pending.clear()
        finally:
            if slot is not None:
                os.close(slot)

    async def _judge(self, key: str, call: Call) -> None:
        """Make one call: repeat attempts until one gives a preference or the limit of attempts is reached."""
        attempts: list[Attempt] = []
        counted = 0
        while True:
            while (quiet_s := self.client.quiet_until - time.monotonic()) > 0:
                await asyncio.sleep(quiet_s + random.uniform(0, BACKOFF_START))
            self.meter.before_call()
            started = time.monotonic()
            attempt = await self.client.attempt(call)
            latency = time.monotonic() - started
            self._count(attempt)
            attempts.append(attempt)
            counted += not (attempt.uncounted or self._in_outage(attempt, started))
            if attempt.outcome in PREFERENCES or counted >= self.endpoint.attempts:
                break
            if not attempt.uncounted:
                pause = random.uniform(0, min(BACKOFF_CAP, BACKOFF_START * 2.0 ** (len(attempts) - 1)))
                await asyncio.sleep(max(pause, attempt.retry_after))
        reply = Reply(
            outcome=attempt.outcome,
            raw=attempt.raw,
            latency=latency,
            attempts=len(attempts),
            prompt_tokens=sum(each.prompt_tokens for each in attempts),
            completion_tokens=sum(each.completion_tokens for each in attempts),
        )
        self.replies[key] = reply
        if reply.outcome in PREFERENCES:
            self.ledger.add(key, asdict(reply) | {"model": attempt.model, "fingerprint": attempt.fingerprint})

    def _in_outage(self, attempt: Attempt, started: float) -> bool:
        """Whether the endpoint is down for a while, so that the failure is not the call's.

        It is if this attempt did not reach it, no attempt has reached it since this one started, and one reached it at
        most OUTAGE_S ago.
        """
        now = time.monotonic()
        if not attempt.unreachable:
            self.last_reached_at = now
            return False
        last_reached_at = self.last_reached_at
        return last_reached_at is not None and last_reached_at <= started and now - last_reached_at < OUTAGE_S

    def _count(self, attempt: Attempt) -> None:
        """Add an attempt to the meter and to the facts about the batch."""
        self.meter.after_call(attempt.prompt_tokens, attempt.completion_tokens)
        stats, prices = self.stats, (self.endpoint.price_prompt, self.endpoint.price_completion)
        stats.calls += 1
        stats.prompt_tokens += attempt.prompt_tokens
        stats.completion_tokens += attempt.completion_tokens
        stats.spend += price(attempt.prompt_tokens, attempt.completion_tokens, prices)
        stats.add_identity(attempt.model, attempt.fingerprint)
