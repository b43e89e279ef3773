"""What is kept of judge calls on disk, and shared by the processes of a run: verdicts, counts and slots.

Verdicts are kept by content: by what was asked of which judge, never by the name of a model or a trial, so an answer
that changed is judged again and one that did not is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sacpo.errors import StepError
from sacpo.planning.identity import canonical

DECIDED = ("first", "second", "tie")

Row = dict[str, Any]


class BudgetExceeded(StepError):
    """The run may make no more judge calls."""


def call_key(judge: dict[str, Any], prompt: str, first: str, second: str, repeat: int) -> str:
    """The SHA-256 of all that can change a verdict.

    Args:
        judge: The judge's identity: model, settings, rubric, version of the frame.
        prompt: The message that was answered.
        first: The answer shown first.
        second: The answer shown second.
        repeat: Which of several calls with the same content this is.
    """
    return hashlib.sha256(canonical([judge, prompt, first, second, repeat]).encode()).hexdigest()


class Ledger:
    """Decided verdicts, in a folder that any number of processes append to at once.

    Each writer has a file of its own and sees what the others had written when it began, so two that ask the same at
    the same time both pay; neither can damage what the other wrote.

    Args:
        folder: Where the files are. Created when first written to.
        name: This writer's file, without its ending. No two writers alive at once may have the same.
    """

    def __init__(self, folder: str | Path, name: str) -> None:
        self.path = Path(folder) / f"{name}.jsonl"
        self._rows: dict[str, Row] = {}
        for path in sorted(Path(folder).glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # half written: its call is made again
                    entry = json.loads(line)
                    self._keep(entry["key"], entry["row"])

    def __len__(self) -> int:
        """How many calls are known to be decided."""
        return len(self._rows)

    def get(self, key: str) -> Row | None:
        """The row of a call that was decided, or none."""
        return self._rows.get(key)

    def add(self, key: str, row: Row) -> None:
        """Keep a row; one write, so that a killed process leaves at most its last line incomplete.

        Args:
            key: What `call_key` gives.
            row: `outcome`, and what else is worth keeping. Only decided outcomes are ever given back.
        """
        self._keep(key, row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            torn = end > 0 and os.pread(file.fileno(), 1, end - 1) != b"\n"
            file.write(b"\n" * torn + json.dumps({"key": key, "row": row}).encode() + b"\n")

    def _keep(self, key: str, row: Row) -> None:
        if row["outcome"] in DECIDED:
            self._rows[key] = row


class Meter:
    """Calls and spend of one run, counted over all processes of the host.

    Args:
        folder: The run's own; a file in it holds the counts. Created when needed.
        max_calls: HTTP attempts that the run may make; none: no bound.
        max_spend: What the run may spend, in the prices' currency; none: no bound. A call's price is known when it has
            ended, so calls under way at that moment may exceed it.
        prices: Of a million prompt tokens and of a million completion tokens.
    """

    def __init__(
        self, folder: str | Path, max_calls: int | None, max_spend: float | None, prices: tuple[float, float]
    ) -> None:
        self.path = Path(folder) / "meter.json"
        self.max_calls, self.max_spend, self.prices = max_calls, max_spend, prices

    def before_call(self) -> None:
        """Count an HTTP attempt that is about to be made.

        Raises:
            BudgetExceeded: it is one too many, or the money is spent.
        """
        with self._counts() as counts:
            way_out = "verdicts already got are kept: the same command with a higher limit goes on from here"
            if self.max_calls is not None and counts["calls"] >= self.max_calls:
                raise BudgetExceeded(
                    f"the limit max_calls = {self.max_calls} is reached: {counts['calls']} judge calls were made, "
                    f"retries included; {way_out}"
                )
            if self.max_spend is not None and counts["spend"] >= self.max_spend:
                raise BudgetExceeded(
                    f"the limit max_spend = {self.max_spend:g} is reached: {counts['calls']} judge calls cost "
                    f"{counts['spend']:.6g}; {way_out}"
                )
            counts["calls"] += 1

    def after_call(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what an attempt has used; nothing is known of attempts without an answer."""
        with self._counts() as counts:
            counts["spend"] += price(prompt_tokens, completion_tokens, self.prices)

    def used(self) -> tuple[int, float]:
        """Calls and spend so far."""
        with self._counts() as counts:
            return counts["calls"], counts["spend"]

    @contextlib.contextmanager
    def _counts(self) -> Iterator[dict[str, Any]]:
        """The counts, locked; what is done to them is kept unless an error is raised."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            content = os.pread(file, 1024, 0)
            counts: dict[str, Any] = json.loads(content) if content else {"calls": 0, "spend": 0.0}
            yield counts
            # Always as long, in one write: a process killed here leaves the old counts or the new ones.
            os.pwrite(file, json.dumps(counts).ljust(100).encode(), 0)
        finally:
            os.close(file)


def price(prompt_tokens: int, completion_tokens: int, prices: tuple[float, float]) -> float:
    """What tokens cost, at prices per million."""
    return (prompt_tokens * prices[0] + completion_tokens * prices[1]) / 1e6


def take_slot(folder: Path, concurrency: int) -> int | None:
    """One of `concurrency` slots that all processes of the host share, or none if all are taken.

    Returns:
        The descriptor of a locked file: close it to give the slot back. A process that dies gives its slots back.
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
