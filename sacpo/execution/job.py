"""What a step is handed and what it gives back, the same for every kind of step and every executor."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sacpo.errors import StoreError
from sacpo.store.heartbeat import Heartbeat
from sacpo.store.local_cache import Cache
from sacpo.store.step_store import Record, Store

ON_DEVICE = ("reference", "probabilities", "generate")  # load a policy
ON_CPU = ("model",)
_SEND_S = 30.0  # between two writes of a running judging's verdicts to a bucket
_MODEL_JUDGES = ("reward_model", "trained_reward_model")


@dataclass(frozen=True)
class Job:
    """A step ready to be carried out.

    Attributes:
        step_id: The step's id.
        payload: Everything that decides the output.
        folder: Where to write the output; it exists.
        parents: Role of each parent and the folder of its verified output.
        local: Where to find what the payload names by content.
        resources: The space's `resources` as plain values.
        logs: Folder for the log files of the step's workers.
        scratch: Path for what a restart needs, in the store's file system.
        run: Id of the sweep run that asks.
        ledger: Folder where judges keep what single calls answered, across steps and sweeps.
        store: The store that all these folders belong to.
        needs: Records of the parents.
        shard: (index, count): which part of a step that is split over several workers.
        created: When it was handed out, seconds since the epoch.
    """

    step_id: str
    payload: dict[str, Any]
    folder: Path
    parents: dict[str, Path]
    local: dict[str, Any]
    resources: dict[str, Any]
    logs: Path
    scratch: str
    run: str
    ledger: Path
    store: Store
    needs: tuple[Record, ...]
    shard: tuple[int, int] = (0, 1)
    created: float = field(default_factory=time.time)

    @contextlib.contextmanager
    def staged_inputs(self) -> Iterator[None]:
        """For the process that works, wherever it is: what the step reads is on this machine, its logs get kept.

        Raises:
            CorruptOutput: a parent's output is damaged.
        """
        cache = self.store.cache
        if cache is None:
            yield
            return
        for record in self.needs:
            self.store.output(record["step_id"], record)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if self.payload.get("judge", {}).get("kind") == "llm":
                with self._shared_ledger(cache):
                    yield
            else:
                yield
        finally:
            cache.send(self.logs)

    def keep(self) -> dict[str, str]:
        """Have the output, or this shard's part of it, in the store, from the machine where it was written; digests."""
        return self.store.keep(self.step_id, self.folder.name, "*" if self.shard[1] == 1 else f"{self.shard[0]:04d}-*")

    def gather(self, digests: dict[str, str]) -> None:
        """Have what shards kept on this machine, and in the store no longer.

        Raises:
            StoreError: a part is not what its shard wrote.
        """
        if self.store.cache is None:
            return
        key = f"steps/{self.step_id}/{self.folder.name}"
        problem = self.store.cache.fetch(key, digests)
        if problem is not None:
            raise StoreError(f"{self.step_id}: {problem}")
        for name in digests:
            self.store.files.remove(f"{key}/{name}")

    @contextlib.contextmanager
    def _shared_ledger(self, cache: Cache) -> Iterator[None]:
        """What others asked is known here, what is asked here gets to the store while it is being asked."""
        send = functools.partial(cache.send, self.ledger, f"{self.step_id}-*")
        heart = Heartbeat(send, _SEND_S)
        cache.receive(self.ledger)
        heart.start()
        try:
            yield
        finally:
            heart.stop()
            send()


@dataclass
class Facts:
    """What a step reports for its record, beside its files.

    Attributes:
        effective: Settings read back from the objects that did the work.
        metrics: Measured numbers.
        workers: Processes that worked.
        devices: Accelerators (CPU workers where there are none) that were held.
        started_at: When the first worker process was there, seconds since the epoch.
        first_update_at: When the first training or answering step began.
        ended: When the work was done.
        readied: (part of the start, when it was over), in order; see `ready`.
    """

    effective: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    workers: int = 1
    devices: int = 0
    started_at: float = field(default_factory=time.time)
    first_update_at: float | None = None
    ended: float | None = None
    readied: list[tuple[str, float]] = field(default_factory=list)

    def ready(self, part: str) -> None:
        """Note that a part of what comes before the first work is over."""
        self.readied.append((part, time.time()))

    def start_seconds(self) -> dict[str, float]:
        """Seconds of each part of the start."""
        times = [self.started_at, *(when for _, when in self.readied)]
        return {part: after - before for (part, _), before, after in zip(self.readied, times, times[1:], strict=False)}

    def as_record(self) -> dict[str, Any]:
        """The facts as JSON values, with seconds derived."""
        ended = self.ended if self.ended is not None else time.time()
        seconds = ended - self.started_at
        return {
            "effective": self.effective,
            "metrics": self.metrics,
            "workers": self.workers,
            "seconds": seconds,
            "device_seconds": seconds * self.devices,
            "started_at": self.started_at,
            "first_update_at": self.first_update_at if self.first_update_at is not None else self.started_at,
            "ended": ended,
        }


def worker_resources(resources: dict[str, Any]) -> dict[str, float]:
    """What one worker holds while it works."""
    held: dict[str, float] = {"CPU": resources["cpus_per_worker"]}
    if resources["gpus_per_worker"]:
        held["GPU"] = resources["gpus_per_worker"]
    return held


def workers_held(kind: str, payload: dict[str, Any], resources: dict[str, Any]) -> int:
    """How many workers' resources a step holds at once; 0 where the process that asks does it itself, holding none."""
    with_model = "judge" in payload and payload["judge"]["kind"] in _MODEL_JUDGES
    if kind in ("train", "reference") or (kind == "judge" and with_model):
        return int(resources["workers"])
    return int(with_model or kind in ON_DEVICE + ON_CPU)


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send this process's standard output and error, also of native code, to a file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
