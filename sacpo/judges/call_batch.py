"""Makes many calls to an endpoint at once, with retries, and separates failures from preferences (or answers).

A failed call is retried, unless the endpoint refuses this very call for its content or length. A call without a
preference after its last attempt is `unparsable` or `unavailable`, and never a tie. Every preference is written to the
ledger at once, so a later failure loses no reply that was paid for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from sacpo.errors import StepError
from sacpo.judges.chat_client import Attempt, ChatClient, Connection, ReplyOutcome
from sacpo.judges.ledger import KEPT, Ledger, Meter, QuotaExceeded, Row, price, take_slot

BACKOFF_START = 0.5  # seconds; doubled with every attempt of a call, and a pause is drawn between 0 and the result
BACKOFF_CAP = 30.0  # seconds
SLOT_POLL = 0.05  # seconds between two searches for a free slot
OUTAGE_S = 180.0
"""Seconds for which calls wait for an endpoint that replied before. Attempts during such an outage are not counted."""

C = TypeVar("C", bound=Hashable)


@dataclass(frozen=True)
class Reply:
    """Result of one call.

    Attributes:
        outcome: The preferred answer, or that the reply is an answer; or the failure of the last attempt.
        raw: The last reply, or a description of the failure.
        latency: Seconds of the last attempt.
        attempts: HTTP attempts made.
        prompt_tokens: Prompt tokens of all attempts, as far as the endpoint reported them.
        completion_tokens: Completion tokens of all attempts, as far as the endpoint reported them.
        cached: The reply came from the ledger, or from an earlier call of the batch with the same content.
        refused: The endpoint refused this call for its content or length.
        shown_tokens: Prompt tokens of the last attempt, as the endpoint counted them; 0 if it counted none.
        probabilities: Fields of `VerdictProbabilities`, where they were asked for.
        cut: The last reply ended at the limit of tokens.
    """

    outcome: ReplyOutcome
    raw: str
    latency: float
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    cached: bool = False
    refused: bool = False
    shown_tokens: int = 0
    probabilities: dict[str, float] | None = None
    cut: bool = False


@dataclass
class CallStats:
    """Facts about a batch of calls and the endpoint.

    Attributes:
        models: Model names that the endpoint reported, including those of replies from the ledger.
        fingerprints: The endpoint's `system_fingerprint` values, including those of replies from the ledger.
        structured: The JSON schema for replies was requested and not refused. An endpoint can still have ignored it.
        left_out: Parameters that the endpoint refused, so that requests went without them, also those of replies from
            the ledger.
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
    left_out: set[str] = field(default_factory=set)

    def facts(self) -> dict[str, Any]:
        """The fields of `sacpo.planning.records.EndpointEffective`."""
        names = ("calls", "from_ledger", "prompt_tokens", "completion_tokens", "spend")
        listed = {name: tuple(sorted(getattr(self, name))) for name in ("models", "fingerprints", "left_out")}
        return listed | {name: getattr(self, name) for name in names}

    def add_identity(self, model: str | None, fingerprint: str | None) -> None:
        """Add the model name and the fingerprint of a reply; None is skipped."""
        self.models |= {model} if model else set()
        self.fingerprints |= {fingerprint} if fingerprint else set()


def _stored_reply(row: Row) -> Reply:
    """A reply of the ledger; fields that an older version did not write have their defaults."""
    known: dict[str, Any] = {part.name: row[part.name] for part in fields(Reply) if part.name in row}
    reply = Reply(**{"raw": "", "latency": 0.0, "attempts": 1, "prompt_tokens": 0, "completion_tokens": 0, **known})
    return reply if "shown_tokens" in row or reply.attempts != 1 else replace(reply, shown_tokens=reply.prompt_tokens)


def replies_to(
    calls: Mapping[str, C],
    connection: Connection,
    make_client: Callable[[bool], ChatClient[C]],
    ledger: Ledger,
    meter: Meter,
    slots_folder: Path,
) -> tuple[dict[str, Reply], set[str], CallStats]:
    """Get a reply to every call, from the ledger or from the endpoint.

    Args:
        calls: The calls by the keys of their replies in the ledger.
        connection: How the endpoint is reached.
        make_client: Makes the client that knows this kind of calls, told whether the endpoint has answered before.
        ledger: Stored replies; new ones are added.
        meter: Limits of calls and spend.
        slots_folder: Folder of the slots that limit the number of concurrent calls.

    Returns:
        The replies by key, the keys of those that came from the ledger, and facts about the calls.

    Raises:
        StepError: the endpoint refuses the key, the model or a setting; or the key's environment variable is not set.
        BudgetExceeded: a limit of the run is reached, or the account's quota is used up. As with the other, calls in
            flight were completed and their preferences stored.
    """
    stored = {key: row for key in calls if (row := ledger.get(key)) is not None}
    new_calls = {key: call for key, call in calls.items() if key not in stored}
    batch = _Batch(new_calls, connection, make_client, ledger, meter, slots_folder)
    if new_calls:
        asyncio.run(batch.run())
    stats, replies = batch.stats, dict(batch.replies)
    stats.from_ledger = len(stored)
    for key, row in stored.items():
        stats.add_identity(row.get("model"), row.get("fingerprint"))
        stats.left_out |= {*row.get("left_out", ())}
        replies[key] = _stored_reply(row)
    return replies, {*stored}, stats


class _Batch(Generic[C]):
    """The new calls of one `replies_to`, and the workers that make them.

    Attributes:
        replies: Replies so far, by key.
        stats: Facts about the attempts so far.
        error: The first error that ended the batch.
        last_reached_at: Time (monotonic clock) at which an attempt last reached the endpoint; None before the first
            such attempt. The start counts as one if the ledger has replies, since the endpoint was once up.
    """

    def __init__(
        self,
        calls: Mapping[str, C],
        connection: Connection,
        make_client: Callable[[bool], ChatClient[C]],
        ledger: Ledger,
        meter: Meter,
        slots_folder: Path,
    ) -> None:
        self.pending = deque(calls.items())
        self.connection, self.make_client = connection, make_client
        self.ledger, self.meter, self.slots_folder = ledger, meter, slots_folder
        self.replies: dict[str, Reply] = {}
        self.stats = CallStats()
        self.error: StepError | None = None
        self.last_reached_at = time.monotonic() if len(ledger) else None

    async def run(self) -> None:
        """Make all calls, unless an error ends the batch."""
        self.slot_search = asyncio.Lock()  # one worker at a time searches for a free slot
        self.ended = asyncio.Event()
        self.client = self.make_client(len(self.ledger) > 0)
        count = min(self.connection.concurrency, len(self.pending))
        workers = [asyncio.create_task(self._work()) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await self.client.close()
        self.stats.structured = self.client.structured
        self.stats.left_out = set(self.client.left_out)
        if self.error is not None:
            raise self.error
        self.client.check_refusals()

    async def _work(self) -> None:
        """Take a slot, then make pending calls until none is left."""
        slot = None
        try:
            async with self.slot_search:
                while self.pending and (slot := take_slot(self.slots_folder, self.connection.concurrency)) is None:
                    await asyncio.sleep(SLOT_POLL)
            while self.pending:
                await self._call(*self.pending.popleft())
        except StepError as error:
            # The other workers complete their attempts in flight, which are paid for.
            if isinstance(error, QuotaExceeded):
                self.meter.quota_exceeded(str(error))
            self.error = self.error or error
            self.pending.clear()
            self.ended.set()
        finally:
            if slot is not None:
                os.close(slot)

    async def _pause(self, seconds: float) -> None:
        """Wait, or until an error ends the batch."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)

    async def _call(self, key: str, call: C) -> None:
        """Make one call: repeat attempts until one has a reply to keep or the limit of attempts is reached."""
        attempts: list[Attempt] = []
        counted = 0
        while True:
            while (quiet_s := self.client.quiet_until - time.monotonic()) > 0:
                await self._pause(quiet_s + random.uniform(0, BACKOFF_START))
                if self.ended.is_set():
                    return
            self.meter.before_call()
            started = time.monotonic()
            attempt = await self.client.attempt(call)
            latency = time.monotonic() - started
            self._count(attempt)
            attempts.append(attempt)
            counted += not (attempt.uncounted or self._in_outage(attempt, started))
            if attempt.outcome in KEPT or attempt.final or counted >= self.connection.attempts:
                break
            if self.ended.is_set():
                return
            if not attempt.uncounted:
                pause = random.uniform(0, min(BACKOFF_CAP, BACKOFF_START * 2.0 ** (len(attempts) - 1)))
                await self._pause(max(pause, attempt.retry_after))
                if self.ended.is_set():
                    return
        reply = Reply(
            outcome=attempt.outcome,
            raw=attempt.raw,
            latency=latency,
            attempts=len(attempts),
            prompt_tokens=sum(each.prompt_tokens for each in attempts),
            completion_tokens=sum(each.completion_tokens for each in attempts),
            refused=attempt.refused,
            shown_tokens=attempt.prompt_tokens,
            probabilities=asdict(attempt.probabilities) if attempt.probabilities else None,
            cut=attempt.cut,
        )
        self.replies[key] = reply
        if reply.outcome in KEPT:
            facts = {"model": attempt.model, "fingerprint": attempt.fingerprint}
            self.ledger.add(key, asdict(reply) | facts | {"left_out": sorted(self.client.left_out)})

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
        stats = self.stats
        stats.calls += 1
        stats.prompt_tokens += attempt.prompt_tokens
        stats.completion_tokens += attempt.completion_tokens
        stats.spend += price(attempt.prompt_tokens, attempt.completion_tokens, self.connection.prices)
        stats.add_identity(attempt.model, attempt.fingerprint)
