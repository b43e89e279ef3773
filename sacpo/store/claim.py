"""Claims: one attempt at a step, held by one process at a time.

The number of an attempt is claimed by creating its file exclusively, so no lock is ever deleted or renamed: a later
number overrules an earlier one. A claim is stale if its process on this host has ended, or if its heartbeat has not
changed for `heartbeat.LEASE_S` seconds of the observer's own clock (clocks of two hosts are never compared). A second
holder that finishes finds the record of the first and drops its own output, so even two live holders cannot damage a
step.
"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any, Protocol

from sacpo.planning.kinds import KINDS
from sacpo.planning.payloads import hashed
from sacpo.planning.plan import Step
from sacpo.planning.records import Failure, StepRecord, StepResult
from sacpo.store import heartbeat
from sacpo.store.backends import Backend


class ClaimStore(Protocol):
    """The part of a store that claims need; `sacpo.store.step_store.Store` describes it."""

    files: Backend
    uri: str

    def step_dir(self, step_id: str) -> Path:
        """This machine's folder of a step."""

    def record(self, step_id: str) -> StepRecord | None:
        """The step's record; None while the step is not done."""

    def upload(self, step_id: str, output: str) -> dict[str, str]:
        """Put an output's files into the store; returns their digests by name."""

    def discard(self, key: str) -> None:
        """Remove a folder from the store and from this machine."""

    def delete_checkpoints(self, step_id: str) -> None:
        """Make a step start from its beginning if it is restarted."""


class Claim:
    """One attempt at a step; it is held as long as its heartbeat goes on.

    Write the output to `folder`; end with `commit`, `fail` or `release`. `take` makes one.
    """

    def __init__(self, store: ClaimStore, step: Step, number: int, run: str) -> None:
        self.store, self.step, self.number, self.run = store, step, number, run
        self.output = f"output-{number:04d}"
        self.folder = store.step_dir(step.id) / self.output
        self._beats, self._token = 0, uuid.uuid4().hex
        self._heartbeat = heartbeat.Heartbeat(
            lambda: store.files.write(_attempt(step.id, number, "claim"), self._next_content())
        )

    @classmethod
    def take(cls, store: ClaimStore, step: Step, run: str) -> Claim | None:
        """Claim the next attempt at a step.

        Args:
            store: The store.
            step: The step.
            run: Id of the sweep run, which is kept with a failure.

        Returns:
            The claim; None if the step is done, a live process holds it, or it failed in this very run.
        """
        attempts = store.files.list_names(f"steps/{step.id}/attempts")
        number = latest_attempt(attempts)
        if _is_held(store, step.id, attempts):
            return None
        if read_failure(store, step.id, attempts, run) is not None:
            return None
        claim = cls(store, step, number + 1, run)
        if not store.files.create(_attempt(step.id, number + 1, "claim"), claim._next_content()):
            return None
        if number and store.record(step.id) is not None:  # finished by an earlier attempt, perhaps a moment ago
            claim.release()
            return None
        identity = {"kind": step.kind, "recipe": step.recipe, "payload": hashed(step.payload), "parents": step.parents}
        store.files.write(f"steps/{step.id}/payload.json", json.dumps(identity, indent=1, sort_keys=True).encode())
        claim.folder.mkdir(parents=True, exist_ok=True)
        claim._heartbeat.start()
        return claim

    def _next_content(self) -> bytes:
        """The claim file's next content; it differs from the one before, so that observers see the heartbeat."""
        self._beats += 1
        holder = heartbeat.current_process() | {"run": self.run, "beat": self._beats, "token": self._token}
        return json.dumps(holder).encode()

    def commit(self, result: StepResult) -> StepRecord:
        """Write the record. If another holder's record is there already, that one is returned.

        Args:
            result: Facts about the work; `files` is None unless the output is in the store already.
        """
        files = result.files if result.files is not None else self.store.upload(self.step.id, self.output)
        record = StepRecord.model_validate(
            {name: getattr(result, name) for name in StepResult.model_fields}
            | {
                "files": files,
                "step_id": self.step.id,
                "kind": self.step.kind,
                "label": self.step.label,
                "recipe": self.step.recipe,
                "parents": self.step.parents,
                "output": self.output,
                "attempts": self.number,
                "run": self.run,
            }
        )
        key = f"steps/{self.step.id}/record.json"
        is_first = self.store.files.create(key, record.model_dump_json(indent=1).encode())
        self._end("done", {})  # in case the record is retracted later
        for output in self._superseded_outputs(is_first):
            self.store.discard(f"steps/{self.step.id}/{output}")
        if KINDS[self.step.kind].keeps_checkpoints:
            self.store.delete_checkpoints(self.step.id)
        stored = record if is_first else self.store.record(self.step.id)
        assert stored is not None, "another holder wrote it a moment ago"
        return stored

    def _superseded_outputs(self, is_first: bool) -> list[str]:
        """Outputs that no record names: this one, if another record came first; else those of earlier attempts."""
        if not is_first:
            return [self.output]
        names = self.store.files.list_names(f"steps/{self.step.id}") if self.number > 1 else []
        return [name for name in names if name.startswith("output-") and name < self.output]

    def fail(self, error: str, log: str | None) -> None:
        """End the attempt with the reason of its failure; `log` is a key of the store."""
        failure = Failure(run=self.run, error=error, log=log, time=time.time())
        self._end("failed", failure.model_dump())
        self.store.discard(f"steps/{self.step.id}/{self.output}")

    def release(self) -> None:
        """End the attempt without an outcome: the run was stopped, or the store could not be written."""
        self._end("released", {})
        self.store.discard(f"steps/{self.step.id}/{self.output}")

    def _end(self, suffix: str, content: dict[str, Any]) -> None:
        self._heartbeat.stop()
        self.store.files.create(_attempt(self.step.id, self.number, suffix), json.dumps(content).encode())


def latest_attempt(names: list[str]) -> int:
    """Number of the latest attempt among the names in a step's `attempts` folder; 0 if there is none."""
    return max((int(name.partition(".")[0]) for name in names if name.endswith(".claim")), default=0)


def read_failure(store: ClaimStore, step_id: str, names: list[str], run: str | None) -> Failure | None:
    """Why the latest attempt failed; None if it did not fail, or not in `run` (any run if None)."""
    name = f"{latest_attempt(names):04d}.failed"
    content = _parsed(store.files.read(f"steps/{step_id}/attempts/{name}")) if name in names else None
    failure = None if content is None else Failure.model_validate(content)
    return failure if failure is not None and run in (None, failure.run) else None


def is_held(store: ClaimStore, step_id: str) -> bool:
    """Whether a live process holds the latest attempt at a step."""
    return _is_held(store, step_id, store.files.list_names(f"steps/{step_id}/attempts"))


def holder(store: ClaimStore, step_id: str) -> str | None:
    """Host of the live process that holds the latest attempt at a step; None if there is none."""
    attempts = store.files.list_names(f"steps/{step_id}/attempts")
    if not _is_held(store, step_id, attempts):
        return None
    content = _parsed(store.files.read(_attempt(step_id, latest_attempt(attempts), "claim"))) or {}
    return str(content.get("host") or "unknown").partition(" ")[0]


def _is_held(store: ClaimStore, step_id: str, attempts: list[str]) -> bool:
    number = latest_attempt(attempts)
    ended = {f"{number:04d}.{suffix}" for suffix in ("done", "failed", "released")} & set(attempts)
    return number > 0 and not ended and not is_stale(store, step_id, number)


def is_stale(store: ClaimStore, step_id: str, number: int) -> bool:
    """Whether the holder of an attempt has ended or lost its lease."""
    key = _attempt(step_id, number, "claim")
    content = store.files.read(key)
    if content is None:
        return False  # it is being written at this moment
    return heartbeat.is_stale(_parsed(content) or {"host": None}, f"{store.uri}/{key}", content)


def _parsed(content: bytes | None) -> dict[str, Any] | None:
    """A file's JSON; None if it is missing, or cut off: files are whole unless a machine lost its power."""
    try:
        parsed: dict[str, Any] | None = None if content is None else json.loads(content)
    except ValueError:
        return None
    return parsed


def _attempt(step_id: str, number: int, suffix: str) -> str:
    return f"steps/{step_id}/attempts/{number:04d}.{suffix}"
