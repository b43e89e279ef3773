"""The content-addressed home of steps' outputs and records, shared by every sweep that names it.

Layout, under `<root>/steps/<step id>/`:

    payload.json             what was hashed into the id
    attempts/0001.claim      who works on the first attempt, and its heartbeat
    attempts/0001.failed     why it failed
    output-0001/             what it wrote
    record.json              written last and exclusively: the step is done, and this output is the one

An attempt's number is claimed by creating its file exclusively, so no lock is ever deleted or renamed: a later number
overrules an earlier one. A claim is dead when its process on this host is gone, or when its heartbeat has not changed
for `LEASE` seconds of the observer's own clock (clocks of hosts are never compared). A second finisher finds the record
there and drops its own output, so even two live holders cannot damage a step.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sacpo.errors import StoreError
from sacpo.identity import file_digest
from sacpo.plan import Step

LEASE = 30.0
HEARTBEAT = 5.0

Record = dict[str, Any]


class Store:
    """A store on a local or shared path.

    Args:
        root: The folder. Created when first written to.
    """

    def __init__(self, root: str | Path) -> None:
        text = str(root)
        scheme, separator, _ = text.partition("://")
        if separator and scheme != "file":
            raise StoreError(
                f"--store {text}: {scheme}:// stores are not supported; give a local path or a path on a shared mount"
            )
        self.root = Path(text.removeprefix("file://")).absolute()

    def folder(self, step_id: str) -> Path:
        return self.root / "steps" / step_id

    def record(self, step_id: str) -> Record | None:
        """The step's record, or none while it is not done."""
        try:
            record: Record = json.loads((self.folder(step_id) / "record.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return record

    def output(self, step_id: str) -> Path:
        """The folder of a done step's files, each verified against its digest in the record.

        Raises:
            CorruptOutput: the step is not done, or a file is missing or differs; its record has been retracted, so that
                the next asker computes the step again.
        """
        record = self.record(step_id)
        if record is None:
            raise CorruptOutput(step_id, "it has no record")
        folder = self.folder(step_id) / str(record["output"])
        for name, digest in record["files"].items():
            path = folder / name
            problem = None if path.is_file() else "is missing"
            if problem is None and _digest(path, *_stamp(path)) != digest:
                problem = "does not match its digest"
            if problem is not None:
                self.retract(step_id, f"{name} {problem}")
                raise CorruptOutput(step_id, f"{name} {problem}")
        return folder

    def retract(self, step_id: str, why: str) -> None:
        """Take a step's record back, so that the next asker computes the step again; the reason is kept."""
        folder = self.folder(step_id)
        with contextlib.suppress(FileNotFoundError):  # another reader has just retracted it
            os.rename(folder / "record.json", folder / f"retracted-{uuid.uuid4().hex[:8]}.json")
            _write(folder / f"retracted-{time.time_ns()}.reason", why.encode())

    def retractions(self, step_id: str) -> list[str]:
        """Why outputs of this step were thrown away, oldest first."""
        return [path.read_text() for path in sorted(self.folder(step_id).glob("retracted-*.reason"))]

    def failure(self, step_id: str, run: str | None = None) -> dict[str, Any] | None:
        """The latest attempt's failure: `run`, `error`, `log`; none if it did not fail, or not in `run`."""
        number = self._latest(step_id)
        try:
            failure: dict[str, Any] = json.loads((self._attempt(step_id, number, "failed")).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return failure if run in (None, failure["run"]) else None

    def attempts(self, step_id: str) -> int:
        """How many attempts were made at the step."""
        return self._latest(step_id)

    def claim(self, step: Step, run: str) -> Claim | None:
        """The right to carry the step out, or none: it is done, a live holder is at it, or it failed in this very run.

        Args:
            step: The step.
            run: The id of the asking sweep run, kept with a failure.
        """
        if self.record(step.id) is not None:
            return None
        number = self._latest(step.id)
        if number and not self._ended(step.id, number) and not self._dead(step.id, number):
            return None
        if self.failure(step.id, run) is not None:
            return None
        folder = self.folder(step.id)
        try:
            (folder / "attempts").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be written: {error.strerror}") from None
        claim = Claim(self, step, number + 1, run)
        if not _create(self._attempt(step.id, number + 1, "claim"), claim.heartbeat()):
            return None
        if self.record(step.id) is not None:  # finished between the first look and the claim
            claim.release()
            return None
        _write(folder / "payload.json", json.dumps(step.payload, indent=1, sort_keys=True).encode())
        claim.start()
        return claim

    def scratch(self, step_id: str) -> Path:
        """Where a running step keeps what only a restart needs; removed when the step is done."""
        return self.root / "scratch" / step_id

    @property
    def ledger(self) -> Path:
        """Where judges keep what single calls answered."""
        return self.root / "ledger"

    def log_folder(self, step_id: str) -> Path:
        """Where the step's workers write their logs."""
        return self.folder(step_id) / "logs"

    # ------------------------------------------------------------------------------------------------------- claims

    def _attempt(self, step_id: str, number: int, suffix: str) -> Path:
        return self.folder(step_id) / "attempts" / f"{number:04d}.{suffix}"

    def _latest(self, step_id: str) -> int:
        claims = (self.folder(step_id) / "attempts").glob("*.claim")
        return max((int(path.stem) for path in claims), default=0)

    def _ended(self, step_id: str, number: int) -> bool:
        return any(self._attempt(step_id, number, suffix).exists() for suffix in ("done", "failed", "released"))

    def _dead(self, step_id: str, number: int) -> bool:
        path = self._attempt(step_id, number, "claim")
        try:
            content = path.read_bytes()
            holder = json.loads(content)
        except (FileNotFoundError, json.JSONDecodeError):
            return False  # being written this instant
        if holder["host"] == _host():
            return not _alive(holder["pid"], holder["started"])
        return _seen_unchanged(path, content) > LEASE


class CorruptOutput(StoreError):
    """A done step's output is damaged. The step counts as not done from now on."""

    def __init__(self, step_id: str, why: str) -> None:
        super().__init__(step_id, why)
        self.step_id = step_id

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.args[1]}"


class Heart:
    """Calls `beat` every `HEARTBEAT` seconds, in a thread, until it is stopped."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # a store out of reach for a while; the lease decides
                self._beat()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()


class Claim:
    """One attempt at a step, alive as long as its heartbeat is.

    Write the outputs to `folder`; end with `commit` or `fail`.
    """

    def __init__(self, store: Store, step: Step, number: int, run: str) -> None:
        self.store, self.step, self.number, self.run = store, step, number, run
        self.folder = store.folder(step.id) / f"output-{number:04d}"
        self._beats = 0
        self._heart = Heart(lambda: _write(store._attempt(step.id, number, "claim"), self.heartbeat()))

    def heartbeat(self) -> bytes:
        """The claim file's next content."""
        self._beats += 1
        pid = os.getpid()
        holder = {"host": _host(), "pid": pid, "started": _start_time(pid), "run": self.run, "beat": self._beats}
        return json.dumps(holder).encode()

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._heart.start()

    def commit(self, facts: dict[str, Any]) -> Record:
        """Digest the outputs and write the record. If somebody else's is there already, theirs is returned."""
        files = {
            str(path.relative_to(self.folder)): file_digest(path)
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        record = {
            **facts,
            "step_id": self.step.id,
            "kind": self.step.kind,
            "label": self.step.label,
            "parents": self.step.parents,
            "payload": self.step.payload,
            "output": self.folder.name,
            "files": files,
            "attempts": self.number,
            "run": self.run,
        }
        path = self.store.folder(self.step.id) / "record.json"
        mine = _create(path, json.dumps(record, indent=1, sort_keys=True).encode())
        _create(self.store._attempt(self.step.id, self.number, "done"), b"{}")  # should the record be retracted
        self._heart.stop()
        if not mine:
            shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.store.scratch(self.step.id), ignore_errors=True)
        stored = self.store.record(self.step.id)
        assert stored is not None, "written just now"
        return stored

    def fail(self, error: str, log: str | None) -> None:
        """Leave the reason of this attempt's failure."""
        content = {"run": self.run, "error": error, "log": log, "time": time.time()}
        _create(self.store._attempt(self.step.id, self.number, "failed"), json.dumps(content).encode())
        shutil.rmtree(self.folder, ignore_errors=True)
        self._heart.stop()

    def release(self) -> None:
        """Give the claim up without a verdict: the run was stopped."""
        _create(self.store._attempt(self.step.id, self.number, "released"), b"{}")
        shutil.rmtree(self.folder, ignore_errors=True)
        self._heart.stop()


# -------------------------------------------------------------------------------------------------------------- files


def _write(path: Path, content: bytes) -> None:
    """Replace a file atomically."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _create(path: Path, content: bytes) -> bool:
    """Create a file with its whole content, unless it is there: link() is atomic and refuses on NFS too."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, size: int, modified: int) -> str:
    """A file's digest, read once per process as long as size and time of change stay."""
    return file_digest(path)


# ---------------------------------------------------------------------------------------------------------- processes


@functools.cache
def _host() -> str:
    """This host, boot and process-id space: only there does a process id mean something."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()} {uuid.getnode()}"


def _start_time(pid: int) -> str:
    """When a process started, in ticks since boot, so that a reused process id is told apart; empty if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _alive(pid: int, started: str) -> bool:
    return bool(started) and _start_time(pid) == started


_seen: dict[Path, tuple[bytes, float]] = {}


def _seen_unchanged(path: Path, content: bytes) -> float:
    """For how many seconds this process has seen the file with the same content."""
    before, since = _seen.get(path, (b"", 0.0))
    now = time.monotonic()
    if before != content:
        _seen[path] = (content, now)
        return 0.0
    return now - since
