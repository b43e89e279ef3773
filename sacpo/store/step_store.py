"""The content-addressed home of steps' outputs and records, shared by every sweep that names it.

Layout, under `<uri>/steps/<step id>/`, the same in a folder and in a bucket:

    payload.json             what was hashed into the id
    attempts/0001.claim      who works on the first attempt, and its heartbeat
    attempts/0001.failed     why it failed
    output-0001/             what it wrote
    record.json              written last and exclusively: the step is done, and this output is the one

An attempt's number is claimed by creating its file exclusively, so no lock is ever deleted or renamed: a later number
overrules an earlier one. A claim is dead when its process on this host is gone, or when its heartbeat has not changed
for `heartbeat.LEASE` seconds of the observer's own clock (clocks of hosts are never compared). A second finisher finds
the record there and drops its own output, so even two live holders cannot damage a step.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sacpo.errors import StoreError
from sacpo.planning.identity import file_digest
from sacpo.planning.plan import Step
from sacpo.store import heartbeat
from sacpo.store.backends import Bucket, Folder, open_files
from sacpo.store.local_cache import Cache, folder_digests, stamp

Record = dict[str, Any]

_LEAST_SPACE = 2**20  # bytes


class Store:
    """A store on a local or shared path, or in a bucket.

    Outputs are written to and read from folders of this machine: the store's own, or those of its cache.

    Args:
        uri: A path, or `s3://BUCKET/PREFIX` (`sacpo.store.step_store.backends.Bucket`). Created when first written to.

    Raises:
        StoreError: it is neither.
    """

    def __init__(self, uri: str | Path) -> None:
        self.files = open_files(str(uri), "--store")
        self.cache = Cache(self.files) if isinstance(self.files, Bucket) else None
        self.uri = self.files.uri

    def exists(self) -> bool:
        """Whether any sweep has used it."""
        return bool(self.files.names("steps"))

    def folder(self, step_id: str) -> Path:
        """This machine's folder of a step."""
        return self._here(f"steps/{step_id}")

    def record(self, step_id: str) -> Record | None:
        """The step's record, or none while it is not done. One that is damaged is taken back."""
        content = self.files.read(f"steps/{step_id}/record.json")
        record = _parsed(content)
        if content is not None and record is None:
            self.retract(step_id, "its record is damaged")
        return record

    def records(self, steps: Iterable[str]) -> dict[str, Record]:
        """The records of those that are done; a bucket is asked for many at once."""
        wanted = list(steps)
        if self.cache is None:
            found = [self.record(step) for step in wanted]
        else:
            with ThreadPoolExecutor(16) as pool:
                found = list(pool.map(self.record, wanted))
        return {step: record for step, record in zip(wanted, found, strict=True) if record is not None}

    def place(self, step_id: str, record: Record) -> Path:
        """Where a done step's files are, or will be where somebody asks for its `output`."""
        if self.cache is None:
            return self.output(step_id, record)
        return self.folder(step_id) / str(record["output"])

    def output(self, step_id: str, record: Record | None = None) -> Path:
        """The folder of a done step's files, on this machine, each verified against its digest in the record.

        Args:
            step_id: The step's id.
            record: Its record, if it was read before.

        Raises:
            CorruptOutput: the step is not done, or a file is missing or differs; its record has been retracted, so that
                the next asker computes the step again.
        """
        record = record or self.record(step_id)
        while record is not None:
            key = f"steps/{step_id}/{record['output']}"
            problem = self._problem(key, record["files"])
            if problem is None:
                return self._here(key)
            before, record = record, self.record(step_id)
            if record == before:
                self.retract(step_id, problem)
                raise CorruptOutput(step_id, problem)
        raise CorruptOutput(step_id, "it has no record")

    def _problem(self, key: str, digests: dict[str, str]) -> str | None:
        if self.cache is not None:
            return self.cache.fetch(key, digests)
        for name, digest in digests.items():
            path = self._here(key) / name
            if not path.is_file():
                return f"{name} is missing"
            if _digest(path, *stamp(path)) != digest:
                return f"{name} does not match its digest"
        return None

    def _here(self, key: str) -> Path:
        """Where this machine has what a key names."""
        return (Path(self.uri) if self.cache is None else self.cache.root) / key

    def keep(self, step_id: str, output: str, pattern: str = "*") -> dict[str, str]:
        """Have an output's files, written on this machine, in the store; digests by name."""
        key = f"steps/{step_id}/{output}"
        return folder_digests(self._here(key), pattern) if self.cache is None else self.cache.keep(key, pattern)

    def discard(self, key: str) -> None:
        """Remove a folder from the store and from this machine."""
        self.files.remove(key)
        if self.cache is not None:
            self.cache.drop(key)

    def retract(self, step_id: str, why: str) -> None:
        """Take a step's record back, so that the next asker computes the step again; the reason is kept."""
        folder = f"steps/{step_id}"
        # Another reader may just have retracted it.
        if self.files.move(f"{folder}/record.json", f"{folder}/retracted-{uuid.uuid4().hex[:8]}.json"):
            self.files.write(f"{folder}/retracted-{time.time_ns()}.reason", why.encode())

    def retractions(self, step_id: str) -> list[str]:
        """Why outputs of this step were thrown away, oldest first."""
        reasons = [name for name in self.files.names(f"steps/{step_id}") if name.endswith(".reason")]
        return [(self.files.read(f"steps/{step_id}/{name}") or b"").decode() for name in reasons]

    def failure(self, step_id: str, run: str | None = None) -> dict[str, Any] | None:
        """The latest attempt's failure: `run`, `error`, `log`; none if it did not fail, or not in `run`."""
        return self.tried(step_id, run)[1]

    def tried(self, step_id: str, run: str | None = None) -> tuple[int, dict[str, Any] | None]:
        """How many attempts were made at the step, and its `failure`."""
        tries = self._tries(step_id)
        return _latest(tries), self._failure(step_id, tries, run)

    def _failure(self, step_id: str, tries: list[str], run: str | None) -> dict[str, Any] | None:
        name = f"{_latest(tries):04d}.failed"
        failure = _parsed(self.files.read(f"steps/{step_id}/attempts/{name}")) if name in tries else None
        return failure if failure is not None and run in (None, failure["run"]) else None

    def claim(self, step: Step, run: str) -> Claim | None:
        """The right to carry the step out, or none: it is done, a live holder is at it, or it failed in this very run.

        Args:
            step: The step.
            run: The id of the asking sweep run, kept with a failure.
        """
        tries = self._tries(step.id)
        number = _latest(tries)
        ended = {f"{number:04d}.{suffix}" for suffix in ("done", "failed", "released")} & set(tries)
        if number and not ended and not self._dead(step.id, number):
            return None
        if self._failure(step.id, tries, run) is not None:
            return None
        claim = Claim(self, step, number + 1, run)
        if not self.files.create(_attempt(step.id, number + 1, "claim"), claim.heartbeat()):
            return None
        if number and self.record(step.id) is not None:  # finished, before this or meanwhile
            claim.release()
            return None
        self.files.write(f"steps/{step.id}/payload.json", json.dumps(step.payload, indent=1, sort_keys=True).encode())
        claim.start()
        return claim

    def scratch(self, step_id: str) -> str:
        """Path in `filesystem` where a running step keeps what only a restart needs; removed when the step is done."""
        key = f"scratch/{step_id}"
        return str(self.files.root / key) if isinstance(self.files, Folder) else self.files.path(key)

    def drop_scratch(self, step_id: str) -> None:
        """Have a step, should it be restarted, start from its beginning."""
        self.files.remove(f"scratch/{step_id}")

    def full(self) -> bool:
        """Whether the disk on this machine where outputs are written has no space left."""
        return shutil.disk_usage(self._here("")).free < _LEAST_SPACE

    def filesystem(self) -> Any:
        """The store's pyarrow file system; none: this machine's."""
        return self.files.filesystem() if isinstance(self.files, Bucket) else None

    @property
    def ledger(self) -> Path:
        """Where judges keep what single calls answered."""
        return self._here("ledger")

    def log_folder(self, step_id: str) -> Path:
        """Where the step's workers write their logs."""
        return self.folder(step_id) / "logs"

    def latest_log(self, step_id: str) -> str | None:
        """Where the log is that was written last."""
        if isinstance(self.files, Folder):
            logs = sorted(self.log_folder(step_id).rglob("*.log"), key=os.path.getmtime)
            return str(logs[-1]) if logs else None
        key = f"steps/{step_id}/logs"
        for _ in range(2):  # the latest attempt, then its first log
            names = self.files.names(key)
            if not names:
                return None
            key = f"{key}/{names[-1] if key.endswith('logs') else names[0]}"
        return f"s3://{self.files.path(key)}"

    def _tries(self, step_id: str) -> list[str]:
        return self.files.names(f"steps/{step_id}/attempts")

    def _dead(self, step_id: str, number: int) -> bool:
        key = _attempt(step_id, number, "claim")
        content = self.files.read(key)
        if content is None:
            return False  # being written this instant
        return heartbeat.is_stale(_parsed(content) or {"host": None}, f"{self.uri}/{key}", content)


def _latest(tries: list[str]) -> int:
    return max((int(name.partition(".")[0]) for name in tries if name.endswith(".claim")), default=0)


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    """A file's JSON; none if it is not there, or was cut off: files are whole unless a machine lost its power."""
    try:
        found: dict[str, Any] | None = None if content is None else json.loads(content)
    except ValueError:
        return None
    return found


def _attempt(step_id: str, number: int, suffix: str) -> str:
    return f"steps/{step_id}/attempts/{number:04d}.{suffix}"


class CorruptOutput(StoreError):
    """A done step's output is damaged. The step counts as not done from now on."""

    def __init__(self, step_id: str, why: str) -> None:
        super().__init__(step_id, why)
        self.step_id = step_id

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


class Claim:
    """One attempt at a step, alive as long as its heartbeat is.

    Write the outputs to `folder`; end with `commit` or `fail`.
    """

    def __init__(self, store: Store, step: Step, number: int, run: str) -> None:
        self.store, self.step, self.number, self.run = store, step, number, run
        self.output = f"output-{number:04d}"
        self.folder = store.folder(step.id) / self.output
        self._beats, self._token = 0, uuid.uuid4().hex
        self._heart = heartbeat.Heartbeat(
            lambda: store.files.write(_attempt(step.id, number, "claim"), self.heartbeat())
        )

    def heartbeat(self) -> bytes:
        """The claim file's next content."""
        self._beats += 1
        holder = heartbeat.current_process() | {"run": self.run, "beat": self._beats, "token": self._token}
        return json.dumps(holder).encode()

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._heart.start()

    def commit(self, facts: dict[str, Any]) -> Record:
        """Write the record. If somebody else's is there already, theirs is returned.

        Args:
            facts: What the step says of itself; `files` (digests) where its output is in the store already.
        """
        record = {
            "files": facts["files"] if "files" in facts else self.store.keep(self.step.id, self.output),
            **facts,
            "step_id": self.step.id,
            "kind": self.step.kind,
            "label": self.step.label,
            "parents": self.step.parents,
            "payload": self.step.payload,
            "output": self.output,
            "attempts": self.number,
            "run": self.run,
        }
        content = json.dumps(record, indent=1, sort_keys=True).encode()
        mine = self.store.files.create(f"steps/{self.step.id}/record.json", content)
        self._end("done", {})  # should the record be retracted
        for output in self._needless(mine):
            self.store.discard(f"steps/{self.step.id}/{output}")
        if self.step.kind == "train":  # no other step keeps anything for a restart
            self.store.drop_scratch(self.step.id)
        stored = json.loads(content) if mine else self.store.record(self.step.id)
        assert stored is not None, "somebody wrote it just now"
        return stored

    def _needless(self, mine: bool) -> list[str]:
        """Outputs that no record names: this one, if another is the step's; else those of attempts before it."""
        if not mine:
            return [self.output]
        there = self.store.files.names(f"steps/{self.step.id}") if self.number > 1 else []
        return [name for name in there if name.startswith("output-") and name < self.output]

    def fail(self, error: str, log: str | None) -> None:
        """Leave the reason of this attempt's failure."""
        self._end("failed", {"run": self.run, "error": error, "log": log, "time": time.time()})
        self.store.discard(f"steps/{self.step.id}/{self.output}")

    def release(self) -> None:
        """Give the claim up without a verdict: the run was stopped."""
        self._end("released", {})
        self.store.discard(f"steps/{self.step.id}/{self.output}")

    def _end(self, how: str, why: dict[str, Any]) -> None:
        self._heart.stop()
        self.store.files.create(_attempt(self.step.id, self.number, how), json.dumps(why).encode())


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, size: int, modified: int) -> str:
    """A file's digest, read once per process as long as size and time of change stay."""
    return file_digest(path)
