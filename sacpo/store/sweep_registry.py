"""The registry of sweeps in a store: which sweeps use the store, which are running, and how the others ended.

Under `<store>/sweeps/`, for each run of a sweep: `<run>.json` (its entry) and `<run>.plan.json` (its plan), both
written once; `<run>.beat`, rewritten as a heartbeat; and `<run>.ended`. `sacpo sweep --status` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from sacpo.errors import StoreError
from sacpo.planning.metrics import Stored
from sacpo.planning.plan import Plan
from sacpo.store import heartbeat
from sacpo.store.backends import Backend
from sacpo.store.results_location import ResultsLocation, enclosing_uri, path_inside
from sacpo.store.step_store import Store

_FOLDER = "sweeps"


class SweepEntry(Stored):
    """The entry that a run of a sweep writes when it starts.

    Attributes:
        run: Id of the run.
        name: Name of the space.
        results: URI of the results folder when the run started.
        store_in_results: Path of the store in the results folder, by which a moved folder is located; None if the
            store does not lie inside.
        started_at: Seconds since the epoch.
    """

    run: str
    name: str
    results: str
    store_in_results: str | None
    command: tuple[str, ...]
    started_at: float
    host: str
    pid: int


class _PlannedSteps(Stored):
    """The part of a plan that is counted; plans of all versions have it."""

    trials: tuple[Any, ...]
    steps: dict[str, Any]


COLLECTION_MARKER = "collection"
"""Key of the file that a garbage collection (`sacpo.store.maintenance`) keeps while it runs, as a heartbeat."""


@dataclass(frozen=True)
class RegisteredRun:
    """A run of a sweep in the registry.

    Attributes:
        run: Id of the run.
        entry: Its entry.
        results: URI of its results folder, where it is now.
        state: `running`; `silent` (no heartbeat: the process was killed or its machine failed); `stopped`; or `ended`.
        steps: Ids of the steps of its plan.
        trials: Number of trials of its plan.
        last_beat_age: Seconds since its last heartbeat; None if there is none.
    """

    run: str
    entry: SweepEntry
    results: str
    state: str
    steps: tuple[str, ...]
    trials: int
    last_beat_age: float | None


class Registration:
    """Registers a run of a sweep in its store; a context manager that keeps a heartbeat meanwhile.

    Args:
        plan: The plan.
        store: The store.
        location: The results folder.
        run: Id of the run.
        command: The command line.
        started_at: Seconds since the epoch.
    """

    def __init__(
        self, plan: Plan, store: Store, location: ResultsLocation, run: str, command: Sequence[str], started_at: float
    ) -> None:
        self.plan, self.files, self.key = plan, store.files, f"{_FOLDER}/{run}"
        self.entry = SweepEntry(
            run=run,
            name=plan.space.name,
            results=location.uri,
            store_in_results=path_inside(location.files, store.files),
            command=tuple(command),
            started_at=started_at,
            host=os.uname().nodename,
            pid=os.getpid(),
        )
        self._heartbeat = heartbeat.Heartbeat(self._beat)

    def __enter__(self) -> Registration:
        """Register the run.

        Raises:
            StoreError: a garbage collection of the store is running.
        """
        self.files.write(f"{self.key}.plan.json", self.plan.to_json().encode())
        self.files.write(f"{self.key}.json", self.entry.model_dump_json(indent=1).encode())
        self._beat()
        if is_collecting(self.files):  # looked up after the entry is written, see `sacpo.store.maintenance`
            self.files.write(f"{self.key}.ended", b"stopped")
            raise StoreError(f"{self.files.uri}: `sacpo store gc` is at work; run the same command again when it ends")
        self._heartbeat.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._heartbeat.stop()
        self.files.write(f"{self.key}.ended", b"stopped" if error else b"ended")

    def _beat(self) -> None:
        self.files.write(f"{self.key}.beat", b"")


@dataclass(frozen=True)
class SweepStatus:
    """The state of one run of a sweep.

    Attributes:
        name: Name of the space.
        state: `running`; `silent` (no heartbeat: the process was killed or its machine failed); `stopped`; `done`; or
            `failed` if it ended and some steps are not done.
        done: Number of its plan's steps that are done, by any sweep.
        steps: Number of steps of its plan.
        trials: Number of trials of its plan.
        started_at: Seconds since the epoch.
        results: URI of its results folder.
    """

    name: str
    state: str
    done: int
    steps: int
    trials: int
    started_at: float
    results: str


def sweeps(store: Store) -> list[SweepStatus]:
    """The runs that are registered in a store, the latest first. Damaged entries are left out."""
    runs, _ = registered_runs(store)
    return [_status(store, run) for run in runs]


def _status(store: Store, run: RegisteredRun) -> SweepStatus:
    done, state = len(store.records(run.steps)), run.state
    if state == "ended":
        state = "done" if done == len(run.steps) else "failed"
    return SweepStatus(run.entry.name, state, done, len(run.steps), run.trials, run.entry.started_at, run.results)


def registered_runs(store: Store) -> tuple[list[RegisteredRun], list[str]]:
    """The runs that are registered in a store, the latest first, and the ids of those whose entry is damaged."""
    names = store.files.list_names(_FOLDER)
    runs, damaged = [], []
    for run in [name.removesuffix(".beat") for name in names if name.endswith(".beat")]:
        try:
            entry = SweepEntry.model_validate_json(store.files.read(f"{_FOLDER}/{run}.json") or b"")
            plan = _PlannedSteps.model_validate_json(store.files.read(f"{_FOLDER}/{run}.plan.json") or b"")
        except ValidationError:
            damaged.append(run)
            continue
        inside = entry.store_in_results
        results = entry.results if inside is None else enclosing_uri(store.files, inside)
        ended = store.files.read(f"{_FOLDER}/{run}.ended")
        age = store.files.age(f"{_FOLDER}/{run}.beat")
        state = ("running" if _is_recent(age) else "silent") if ended is None else ended.decode()
        runs.append(RegisteredRun(run, entry, results, state, tuple(plan.steps), len(plan.trials), age))
    return sorted(runs, key=lambda run: -run.entry.started_at), damaged


def remove_run(store: Store, run: str) -> None:
    """Remove a run from the registry."""
    for suffix in ("json", "plan.json", "ended", "beat"):
        store.files.remove(f"{_FOLDER}/{run}.{suffix}")


def is_collecting(files: Backend) -> bool:
    """Whether a garbage collection of the store is running."""
    return _is_recent(files.age(COLLECTION_MARKER))


def _is_recent(age: float | None) -> bool:
    return age is not None and age < heartbeat.LEASE_S
