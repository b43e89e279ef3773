"""A step with everything that the process that carries it out needs; the same for every kind and every executor."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar, cast

from sacpo.data.prompts import Prompt
from sacpo.errors import StoreError
from sacpo.planning.payloads import Payload
from sacpo.planning.plan import Step
from sacpo.planning.records import StepRecord
from sacpo.planning.served import endpoint_of
from sacpo.spaces.space import Resources
from sacpo.store.heartbeat import Heartbeat
from sacpo.store.local_cache import Cache
from sacpo.store.step_store import Store

_SEND_S = 30.0  # between two uploads of a running step's replies to a bucket

P = TypeVar("P", bound=Payload, covariant=True)


@dataclass(frozen=True)
class Job(Generic[P]):
    """A step ready to be carried out.

    Attributes:
        step: The step.
        folder: Where to write the output; it exists.
        parents: Role of each parent and the folder of its verified output.
        parent_records: Records of the parents.
        prompts: The prompts that the payload names; empty if it names none.
        resources: The space's resources.
        logs: Folder for the logs of the step's workers.
        run: Id of the sweep run.
        store: The store that all these folders belong to.
        shard: (index, count): which part of a step that is split over several workers.
        created_at: When the job was made, in seconds since the epoch.
    """

    step: Step
    folder: Path
    parents: dict[str, Path]
    parent_records: tuple[StepRecord, ...]
    prompts: tuple[Prompt, ...]
    resources: Resources
    logs: Path
    run: str
    store: Store
    shard: tuple[int, int] = (0, 1)
    created_at: float = field(default_factory=time.time)

    @property
    def payload(self) -> P:
        """The settings and inputs that decide the output."""
        return cast(P, self.step.payload)

    @contextlib.contextmanager
    def staged_inputs(self) -> Iterator[None]:
        """Have the step's inputs on this machine meanwhile, and its logs in the store afterwards.

        Entered by the process that works, on whichever machine it is. Does nothing where the store is a path.

        Raises:
            CorruptOutput: a parent's output is damaged.
        """
        cache = self.store.cache
        if cache is None:
            yield
            return
        for record in self.parent_records:
            self.store.verified_output_dir(record.step_id, record)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if endpoint_of(self.payload) is not None:
                with self._shared_ledger(cache):
                    yield
            else:
                yield
        finally:
            cache.send(self.logs)

    def upload(self) -> dict[str, str]:
        """Put the output, or this shard's part of it, into the store from this machine; digests by name."""
        pattern = "*" if self.shard[1] == 1 else f"{self.shard[0]:04d}-*"
        return self.store.upload(self.step.id, self.folder.name, pattern)

    def fetch_shards(self, digests: dict[str, str]) -> None:
        """Move the parts that shards uploaded from the store to this machine.

        Raises:
            StoreError: a part is missing or differs from its digest.
        """
        if self.store.cache is None:
            return
        key = f"steps/{self.step.id}/{self.folder.name}"
        problem = self.store.cache.fetch(key, digests)
        if problem is not None:
            raise StoreError(f"{self.step.id}: {problem}")
        for name in digests:
            self.store.files.remove(f"{key}/{name}")

    @contextlib.contextmanager
    def _shared_ledger(self, cache: Cache) -> Iterator[None]:
        """Fetch the replies to other processes first; upload those to this one while they come in."""
        ledger = self.store.ledger
        send = functools.partial(cache.send, ledger, f"{self.step.id}-*")
        sender = Heartbeat(send, _SEND_S)
        cache.receive(ledger)
        sender.start()
        try:
            yield
        finally:
            sender.stop()
            send()
