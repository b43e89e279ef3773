"""The content-addressed home of steps' outputs and records, shared by all sweeps that name it.

Layout, under `<uri>/steps/<step id>/`, the same in a folder and in a bucket:

    payload.json             the kind, the recipe version, the payload and the parents that the id is the hash of
    attempts/0001.claim      the holder of the first attempt, and its heartbeat
    attempts/0001.failed     why the attempt failed (.released: given up without an outcome; .done: it succeeded)
    output-0001/             the files that the attempt wrote
    record.json              written last, and only if it does not exist: the step is done, and names its output

`sacpo.store.claim` describes how an attempt is claimed.
"""

from __future__ import annotations

import functools
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sacpo.errors import StoreError
from sacpo.hashing import digest, file_digest
from sacpo.planning.kinds import read_record
from sacpo.planning.plan import Step
from sacpo.planning.records import Failure, StepRecord
from sacpo.store.backends import BucketBackend, open_backend
from sacpo.store.claim import Claim, latest_attempt, read_failure
from sacpo.store.local_cache import Cache, folder_digests, size_and_mtime

_MIN_FREE_BYTES = 2**20


class Store:
    """A store on a local or shared path, or in a bucket.

    Outputs are written to and read from folders of this machine: the store's own folder, or the local cache of a
    bucket.

    Args:
        uri: A path, or the URI of a bucket (`sacpo.store.bucket_services`). It is created by the first write.

    Raises:
        StoreError: it is neither.
    """

    def __init__(self, uri: str | Path) -> None:
        self.files = open_backend(str(uri), "--store")
        self.cache = Cache(self.files) if isinstance(self.files, BucketBackend) else None
        self.uri = self.files.uri

    def exists(self) -> bool:
        """Whether any sweep has used it."""
        return bool(self.files.list_names("steps"))

    def step_dir(self, step_id: str) -> Path:
        """This machine's folder of a step."""
        return self._local(f"steps/{step_id}")

    def record(self, step_id: str) -> StepRecord | None:
        """The step's record; None while the step is not done. A damaged record is retracted."""
        content = self.files.read(f"steps/{step_id}/record.json")
        if content is None:
            return None
        record = read_record(content)
        if record is None:
            self.retract(step_id, "its record is damaged")
        return record

    def records(self, step_ids: Iterable[str]) -> dict[str, StepRecord]:
        """The records of those steps that are done; a bucket is asked for many at once."""
        ids = list(step_ids)
        if self.cache is None:
            records = [self.record(step_id) for step_id in ids]
        else:
            with ThreadPoolExecutor(16) as pool:
                records = list(pool.map(self.record, ids))
        return {step_id: record for step_id, record in zip(ids, records, strict=True) if record is not None}

    def expected_output_dir(self, record: StepRecord) -> Path:
        """Local path of a done step's output. In a bucket's cache it may be empty until `verified_output_dir`."""
        if self.cache is None:
            return self.verified_output_dir(record.step_id, record)
        return self.step_dir(record.step_id) / record.output

    def verified_output_dir(self, step_id: str, record: StepRecord | None = None) -> Path:
        """The folder of a done step's files on this machine, each verified against its digest in the record.

        Args:
            step_id: The step's id.
            record: Its record, if it was read before.

        Raises:
            CorruptOutput: the step is not done, or a file is missing or differs. The record has then been retracted, so
                that the next caller computes the step again.
        """
        record = record or self.record(step_id)
        while record is not None:
            key = f"steps/{step_id}/{record.output}"
            problem = self._problem(key, record.files)
            if problem is None:
                return self._local(key)
            checked, record = record, self.record(step_id)
            if record == checked:
                self.retract(step_id, problem)
                raise CorruptOutput(step_id, problem)
        raise CorruptOutput(step_id, "it has no record")

    def output_file(self, record: StepRecord, name: str) -> bytes | None:
        """One small file of a done step's output; None if it is missing or does not match its digest."""
        content = self.files.read(f"steps/{record.step_id}/{record.output}/{name}")
        return content if content is not None and digest(content) == record.files.get(name) else None

    def _problem(self, key: str, digests: dict[str, str]) -> str | None:
        if self.cache is not None:
            return self.cache.fetch(key, digests)
        for name, expected in digests.items():
            path = self._local(key) / name
            if not path.is_file():
                return f"{name} is missing"
            if _digest(path, *size_and_mtime(path)) != expected:
                return f"{name} does not match its digest"
        return None

    def _local(self, key: str) -> Path:
        """Path on this machine of a key."""
        return (Path(self.uri) if self.cache is None else self.cache.root) / key

    def upload(self, step_id: str, output: str, pattern: str = "*") -> dict[str, str]:
        """Put an output's files, written on this machine, into the store; returns their digests by name."""
        key = f"steps/{step_id}/{output}"
        _open_to_readers(self._local(key))
        return folder_digests(self._local(key), pattern) if self.cache is None else self.cache.upload(key, pattern)

    def discard(self, key: str) -> None:
        """Remove a folder from the store and from this machine."""
        self.files.remove(key)
        if self.cache is not None:
            self.cache.drop(key)

    def retract(self, step_id: str, reason: str) -> None:
        """Take a step's record back, so that the next caller computes the step again. The reason is kept."""
        folder = f"steps/{step_id}"
        # Another reader may have retracted it a moment ago.
        if self.files.move(f"{folder}/record.json", f"{folder}/retracted-{uuid.uuid4().hex[:8]}.json"):
            self.files.write(f"{folder}/retracted-{time.time_ns()}.reason", reason.encode())

    def retractions(self, step_id: str) -> list[str]:
        """Why records of this step were retracted, oldest first."""
        reasons = [name for name in self.files.list_names(f"steps/{step_id}") if name.endswith(".reason")]
        return [(self.files.read(f"steps/{step_id}/{name}") or b"").decode() for name in reasons]

    def failure(self, step_id: str, run: str | None = None) -> Failure | None:
        """The latest attempt's failure; None if it did not fail, or not in `run` (any run if None)."""
        return self.attempt_summary(step_id, run)[1]

    def attempt_summary(self, step_id: str, run: str | None = None) -> tuple[int, Failure | None]:
        """The number of attempts at the step, and its `failure`."""
        attempts = self.files.list_names(f"steps/{step_id}/attempts")
        return latest_attempt(attempts), read_failure(self, step_id, attempts, run)

    def claim(self, step: Step, run: str) -> Claim | None:
        """The right to carry a step out; see `Claim.take`."""
        return Claim.take(self, step, run)

    def checkpoint_uri(self, step_id: str) -> str:
        """Path in `filesystem` of the folder `checkpoint_key`."""
        key = self.checkpoint_key(step_id)
        return self.files.path(key) if isinstance(self.files, BucketBackend) else self.files.location(key)

    def checkpoint_key(self, step_id: str) -> str:
        """Key of the folder where a running step keeps its checkpoints; removed when the step is done."""
        return f"checkpoints/{step_id}"

    def delete_checkpoints(self, step_id: str) -> None:
        """Make a step start from its beginning if it is restarted."""
        self.files.remove(self.checkpoint_key(step_id))

    def disk_full(self) -> bool:
        """Whether the disk of this machine on which outputs are written has no space left."""
        return shutil.disk_usage(self._local("")).free < _MIN_FREE_BYTES

    def filesystem(self) -> Any:
        """The pyarrow file system of a bucket; None for a path of this machine."""
        return self.files.filesystem() if isinstance(self.files, BucketBackend) else None

    @property
    def ledger(self) -> Path:
        """This machine's folder of the verdicts that LLM judges gave, by content."""
        return self._local("ledger")

    def log_dir(self, step_id: str) -> Path:
        """This machine's folder for the logs of a step's workers."""
        return self.step_dir(step_id) / "logs"

    def latest_log(self, step_id: str) -> str | None:
        """Key of the step's log that was written last; None if there is none. `location` makes it readable."""
        if self.cache is None:
            logs = sorted(self.log_dir(step_id).rglob("*.log"), key=os.path.getmtime)
            return str(logs[-1].relative_to(self.uri)) if logs else None
        key = f"steps/{step_id}/logs"
        for _ in range(2):  # the latest attempt, then its first log
            names = self.files.list_names(key)
            if not names:
                return None
            key = f"{key}/{names[-1] if key.endswith('logs') else names[0]}"
        return key

    def location(self, key: str) -> str:
        """Path or URI of a key, for people."""
        return self.files.location(key)


class CorruptOutput(StoreError):
    """A done step's output is damaged. The step counts as not done from now on."""

    def __init__(self, step_id: str, reason: str) -> None:
        super().__init__(step_id, reason)
        self.step_id = step_id

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


def _open_to_readers(folder: Path) -> None:
    """Give files the permissions that the umask asks for: safetensors creates its files for their owner alone."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod((path.stat().st_mode | 0o666) & ~umask)


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, size: int, modified_ns: int) -> str:
    """A file's digest, computed once per process while its size and time of change stay the same."""
    return file_digest(path)
