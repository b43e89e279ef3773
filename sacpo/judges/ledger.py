"""Files about calls of endpoints that the processes of a run share: replies, counts of calls and spend, and slots.

A judge's replies are stored under a hash of their content (the judge's identity, the prompt and the answers), never
under the name of a model or a trial. An answer that changed is therefore judged again, and an unchanged answer is not.
Answers of a policy that is served elsewhere are stored likewise (`sacpo.judges.answers`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sacpo.errors import StepError
from sacpo.hashing import canonical
from sacpo.judges.completions import printable
from sacpo.judges.replies import PREFERENCES

Row = dict[str, Any]
"""A stored reply: the fields of `sacpo.judges.call_batch.Reply`, the model and fingerprint that the endpoint
reported, and the parameters that it refused."""


ANSWER = "answer"
"""Outcome of a reply that is a policy's answer."""
KEPT = (*PREFERENCES, ANSWER)
"""Outcomes of the replies that are worth keeping; the others are failures, whose calls are made again."""


class BudgetExceeded(StepError):
    """A limit of the run (`max_calls`, `max_spend`) allows no more calls."""


class QuotaExceeded(BudgetExceeded):
    """The account at the endpoint has no credit left, so the run makes no more calls."""


def call_key(judge: dict[str, Any], prompt: str, first: str, second: str, repeat: int) -> str:
    """SHA-256 (hex) of everything that can change a verdict.

    Args:
        judge: The judge's identity: model, settings, rubric, version of the frame.
        prompt: The user's message.
        first: The answer shown first.
        second: The answer shown second.
        repeat: Number of the call among the calls with the same content.
    """
    return hashlib.sha256(canonical([judge, prompt, first, second, repeat]).encode()).hexdigest()


class Ledger:
    """Replies with a preference or an answer, in a folder to which several processes can append at the same time.

    Each writer has its own file, so writers cannot damage each other's replies. A writer reads the other files once,
    when it starts: two writers that make the same call at the same time both pay for it.

    Args:
        folder: Folder of the files; created with the first reply.
        name: Name of this writer's file, without the suffix. Two running writers must not have the same name.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.path = Path(folder) / f"{name}.jsonl"
        self._rows: dict[str, Row] = {}
        self._times: dict[str, float] = {}
        for path in sorted(Path(folder).glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # incomplete line: its call is repeated
                    entry = json.loads(line)
                    self._keep(entry["key"], entry["row"], float(entry.get("time", 0.0)))

    def __len__(self) -> int:
        """Number of stored replies."""
        return len(self._rows)

    def get(self, key: str) -> Row | None:
        """The stored reply of a call, or None."""
        return self._rows.get(key)

    def add(self, key: str, row: Row) -> None:
        """Store a reply. It is one write, so a killed process leaves at most its last line incomplete.

        Args:
            key: Key of the call, from `call_key`.
            row: The reply. `get` returns it only if its `outcome` is one of `KEPT`. A later row of the same key
                replaces an earlier one, so a row with another outcome removes a reply that turned out to be of no use.
        """
        now = time.time()
        self._keep(key, row, now)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            last_line_incomplete = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
            line = json.dumps({"key": key, "row": row, "time": now}).encode()
            file.write(b"\n" * last_line_incomplete + line + b"\n")

    def _keep(self, key: str, row: Row, time_s: float) -> None:
        outcome = row["outcome"]
        if time_s < self._times.get(key, 0.0):
            return
        self._times[key] = time_s
        if outcome in KEPT:
            self._rows[key] = {name: printable(v) if isinstance(v, str) else v for name, v in row.items()}
        else:
            self._rows.pop(key, None)


class Meter:
    """Counts the calls and the spend of one run over all processes of the host, and enforces their limits.

    Args:
        folder: The run's folder, with the file of the counts; created when needed.
        max_calls: Largest number of HTTP attempts of the run; None means no limit.
        max_spend: Largest spend of the run, in the currency of the prices; None means no limit. The price of a call is
            known when it ends, so calls in flight at that time can exceed the limit.
        prices: Price of a million prompt tokens and of a million completion tokens.
        of: What the calls are and what is stored of them, for errors.
    """

    def __init__(
        self,
        folder: str | Path,
        max_calls: int | None,
        max_spend: float | None,
        prices: tuple[float, float],
        of: tuple[str, str] = ("judge calls", "verdicts"),
    ) -> None:
        self.path = Path(folder) / "meter.json"
        self._quota = Path(folder) / "quota.txt"
        self.max_calls, self.max_spend, self.prices = max_calls, max_spend, prices
        self._calls, self._kept = of

    def quota_exceeded(self, reason: str) -> None:
        """End the calls of this run, since the account has no credit left."""
        self._quota.parent.mkdir(parents=True, exist_ok=True)
        self._quota.write_text(reason, encoding="utf-8")

    def before_call(self) -> None:
        """Count an HTTP attempt before it is made.

        Raises:
            BudgetExceeded: `max_calls` or `max_spend` is reached.
            QuotaExceeded: the endpoint refused an earlier call of this run because the account's quota is used up.
        """
        if self._quota.exists():
            raise QuotaExceeded(self._quota.read_text(encoding="utf-8"))
        with self._counts() as counts:
            way_out = f"the {self._kept} so far are stored: raise the limit and run the same command to continue"
            if self.max_calls is not None and counts["calls"] >= self.max_calls:
                raise BudgetExceeded(
                    f"the limit max_calls = {self.max_calls} is reached: {counts['calls']} {self._calls} were made, "
                    f"retries included; {way_out}"
                )
            if self.max_spend is not None and counts["spend"] >= self.max_spend:
                raise BudgetExceeded(
                    f"the limit max_spend = {self.max_spend:g} is reached: {counts['calls']} {self._calls} cost "
                    f"{counts['spend']:.6g}; {way_out}"
                )
            counts["calls"] += 1

    def after_call(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count the tokens of an attempt after its reply; attempts without a reply have 0."""
        with self._counts() as counts:
            counts["spend"] += price(prompt_tokens, completion_tokens, self.prices)

    def used(self) -> tuple[int, float]:
        """Number of calls, and spend, so far."""
        with self._counts() as counts:
            return counts["calls"], counts["spend"]

    @contextlib.contextmanager
    def _counts(self) -> Iterator[dict[str, Any]]:
        """The counts under a lock; changes are written unless an error is raised."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = os.pread(file, 1024, 0)
            counts: dict[str, Any] = json.loads(content) if content else {"calls": 0, "spend": 0.0}
            yield counts
            # One write of constant length: a process that is killed here leaves the old or the new counts.
            os.pwrite(file, json.dumps(counts).ljust(100).encode(), 0)
        finally:
            os.close(file)


def price(prompt_tokens: int, completion_tokens: int, prices: tuple[float, float]) -> float:
    """Price of tokens.

    Args:
        prompt_tokens: Number of prompt tokens.
        completion_tokens: Number of completion tokens.
        prices: Price of a million prompt tokens and of a million completion tokens.
    """
    return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6


def take_slot(folder: Path, concurrency: int) -> int | None:
    """Take one of `concurrency` slots that all processes of the host share.

    Args:
        folder: Folder of the slots' lock files.
        concurrency: Number of slots.

    Returns:
        The descriptor of a locked file, or None if all slots are taken. Closing it releases the slot; the slots of a
        process that dies are released too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(concurrency):
        slot = os.open(folder / f"{i:04d}.slot", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(slot)
        else:
            return slot
    return None
