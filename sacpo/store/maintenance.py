"""The content of a store, the sweeps that need it, and the removal of steps that no sweep needs.

A collection never removes a step that a live sweep may read. It first writes a marker, at which a sweep that starts is
refused, and then reads the registry: of a sweep and a collection that start together, at least one sees the other.
Steps that a live process holds, and steps with files younger than `GRACE_S`, stay. Verdicts in the ledger stay too:
they were paid for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sacpo.errors import StoreError
from sacpo.store import heartbeat
from sacpo.store.backends import StoredFile
from sacpo.store.claim import is_held
from sacpo.store.step_store import Store
from sacpo.store.sweep_registry import COLLECTION_MARKER, RegisteredRun, is_collecting, registered_runs, remove_run

GRACE_S = 3600.0
"""A collection keeps steps with files that are younger, in seconds: a command that is not registered may read them."""
_SILENT_S = 86400.0  # a run that did not end and whose last heartbeat is younger may still be alive


@dataclass(frozen=True)
class SweepUse:
    """The steps of a store that one sweep needs; all runs of one results folder are one sweep.

    Attributes:
        name: Name of the space.
        results: URI of the results folder.
        state: State of the latest run (`sacpo.store.sweep_registry.RegisteredRun`).
        started_at: Start of the latest run, in seconds since the epoch.
        steps: Number of steps of its plans.
        done: Number of those that are done.
        bytes: Size of its steps.
        bytes_alone: Size of the steps that no other sweep needs.
    """

    name: str
    results: str
    state: str
    started_at: float
    steps: int
    done: int
    bytes: int
    bytes_alone: int


@dataclass(frozen=True)
class StoreContent:
    """The content of a store.

    Attributes:
        sweeps: The registered sweeps, the latest first.
        kinds: By kind of step, the number of steps and their bytes, the largest first.
        other: Bytes outside of steps, by folder of the store.
        unneeded_steps, unneeded_bytes: Number and size of the steps that no registered sweep needs.
    """

    sweeps: tuple[SweepUse, ...]
    kinds: dict[str, tuple[int, int]]
    other: dict[str, int]
    unneeded_steps: int
    unneeded_bytes: int


@dataclass(frozen=True)
class Garbage:
    """What a collection removes.

    Attributes:
        folders: Bytes of each folder that is removed, by key.
        runs: Entries of the registry that are removed.
        kept: Steps that no kept sweep needs and that stay, each with the reason.
    """

    folders: dict[str, int]
    runs: tuple[RegisteredRun, ...]
    kept: dict[str, str]


def content(store: Store) -> StoreContent:
    """What is in a store, and which sweeps need it.

    Raises:
        StoreError: there is no store, or it cannot be read.
    """
    files = _files(store)
    sizes = _sizes(_step_files(files))
    sweeps: dict[str, list[RegisteredRun]] = defaultdict(list)
    for run in registered_runs(store)[0]:
        sweeps[run.results].append(run)
    needed = {results: {step for run in runs for step in run.steps} for results, runs in sweeps.items()}
    users: dict[str, int] = defaultdict(int)
    for steps in needed.values():
        for step in steps:
            users[step] += 1
    uses = tuple(
        SweepUse(
            name=runs[0].entry.name,
            results=results,
            state=runs[0].state,
            started_at=runs[0].entry.started_at,
            steps=len(needed[results]),
            done=sum(f"steps/{step}/record.json" in files for step in needed[results]),
            bytes=sum(sizes.get(step, 0) for step in needed[results]),
            bytes_alone=sum(sizes.get(step, 0) for step in needed[results] if users[step] == 1),
        )
        for results, runs in sweeps.items()
    )
    kinds: dict[str, list[int]] = defaultdict(list)
    for step, size in sizes.items():
        kinds[step.partition("-")[0]].append(size)
    other: dict[str, int] = defaultdict(int)
    for key, file in files.items():
        folder, slash, _ = key.partition("/")
        if folder != "steps":
            other[folder + slash] += file.size
    return StoreContent(
        sweeps=uses,
        kinds={k: (len(v), sum(v)) for k, v in sorted(kinds.items(), key=lambda item: -sum(item[1]))},
        other=dict(other),
        unneeded_steps=sum(step not in users for step in sizes),
        unneeded_bytes=sum(size for step, size in sizes.items() if step not in users),
    )


def find_garbage(store: Store, keep: Collection[str] | None = None, grace_s: float = GRACE_S) -> Garbage:
    """What a collection would remove.

    Args:
        store: The store.
        keep: Names or results folders of the sweeps that are kept; None for all registered sweeps. Sweeps that run, or
            were killed within a day, are always kept.
        grace_s: Age in seconds below which files stay.

    Raises:
        StoreError: there is no store, it cannot be read, an entry of the registry is damaged, or `keep` names a sweep
            that is not registered.
    """
    runs, damaged = registered_runs(store)
    if damaged:
        raise StoreError(
            f"{store.uri}: the entries of the runs {', '.join(damaged)} in sweeps/ are damaged, so the steps that they "
            "need are not known; run their sweeps again, and remove the files of these runs"
        )
    if keep is not None:
        known = {name for run in runs for name in (run.entry.name, run.results)}
        if unknown := sorted(set(keep) - known):
            names = ", ".join(sorted(known)) or "no sweeps"
            raise StoreError(f"--keep {', '.join(unknown)}: no such sweep in {store.uri}; it has {names}")
    dropped = tuple(run for run in runs if keep is not None and not _is_kept(run, keep))
    needed = {step for run in runs if run not in dropped for step in run.steps}
    files = _files(store)
    folders: dict[str, int] = {}
    kept: dict[str, str] = {}
    for step, step_files in _step_files(files).items():
        superseded = _superseded_outputs(store, step, step_files)
        if step in needed and not superseded:
            continue
        if time.time() - max(file.modified for file in step_files.values()) < grace_s:
            kept[step] = f"written in the last {grace_s:.0f} s"
        elif is_held(store, step):
            kept[step] = "a live process works on it"
        elif step in needed:
            folders |= superseded
        else:
            folders[f"steps/{step}"] = sum(file.size for file in step_files.values())
    for step, step_files in _step_files(files, "likelihoods").items():
        if step not in needed and step not in kept:
            folders[f"likelihoods/{step}"] = sum(file.size for file in step_files.values())
    for step, step_files in _step_files(files, "checkpoints").items():
        is_done = f"steps/{step}/record.json" in files
        if (is_done or step not in needed) and step not in kept and not is_held(store, step):
            folders[f"checkpoints/{step}"] = sum(file.size for file in step_files.values())
    return Garbage(folders, dropped, {step: reason for step, reason in kept.items() if step not in needed})


def collect_garbage(store: Store, keep: Collection[str] | None = None, grace_s: float = GRACE_S) -> Garbage:
    """Remove what no kept sweep needs (`find_garbage`). No sweep can start meanwhile.

    Raises:
        StoreError: as `find_garbage`; or another collection is at work.
    """
    with _marked(store):
        garbage = find_garbage(store, keep, grace_s)
        for run in garbage.runs:
            remove_run(store, run.run)
        for key in garbage.folders:
            # A reader that has seen the record finds files missing, and the step is then computed again.
            store.files.remove(f"{key}/record.json")
            store.discard(key)
    return garbage


def find_damage(store: Store) -> dict[str, str]:
    """Read every file of every done step, and compare it with its digest.

    Returns:
        What is wrong with a step's output, by step id; records that cannot be read are retracted on the way.

    Raises:
        StoreError: there is no store, or it cannot be read.
    """
    damage = {}
    for step in _step_files(_files(store)):
        record = store.record(step)
        if record is None:
            continue
        for name, expected in record.files.items():
            actual = store.files.digest(f"steps/{step}/{record.output}/{name}")
            if actual != expected:
                damage[step] = f"{name} " + ("is missing" if actual is None else "does not match its digest")
    return damage


def _files(store: Store) -> dict[str, StoredFile]:
    if not store.exists():
        raise StoreError(
            f"there is no store at {store.uri}; a results folder keeps its store in RESULTS/store by default"
        )
    return store.files.files_below()


def _step_files(files: dict[str, StoredFile], folder: str = "steps") -> dict[str, dict[str, StoredFile]]:
    """The files of each step below a folder of the store, by step id."""
    steps: dict[str, dict[str, StoredFile]] = defaultdict(dict)
    for key, file in files.items():
        top, _, rest = key.partition("/")
        step, slash, name = rest.partition("/")
        if top == folder and slash:
            steps[step][name] = file
    return steps


def _sizes(steps: dict[str, dict[str, StoredFile]]) -> dict[str, int]:
    return {step: sum(file.size for file in files.values()) for step, files in steps.items()}


def _superseded_outputs(store: Store, step: str, files: dict[str, StoredFile]) -> dict[str, int]:
    """Bytes of a step's outputs of killed attempts, which its record does not name, by key; none without a record."""
    outputs: dict[str, int] = defaultdict(int)
    for name, file in files.items():
        folder, slash, _ = name.partition("/")
        if slash and folder.startswith("output-"):
            outputs[folder] += file.size
    if len(outputs) < 2:
        return {}
    record = store.record(step)
    return {} if record is None else {f"steps/{step}/{o}": n for o, n in outputs.items() if o != record.output}


def _is_kept(run: RegisteredRun, keep: Collection[str]) -> bool:
    has_no_end = run.state in ("running", "silent")
    may_live = has_no_end and (run.last_beat_age is None or run.last_beat_age < _SILENT_S)
    return may_live or run.entry.name in keep or run.results in keep


@contextmanager
def _marked(store: Store) -> Iterator[None]:
    """Keep the marker of a collection, at which sweeps that start are refused."""
    if is_collecting(store.files):
        raise StoreError(f"{store.uri}: another `sacpo store gc` is at work")

    def write() -> None:
        store.files.write(COLLECTION_MARKER, b"")

    write()
    beat = heartbeat.Heartbeat(write)
    beat.start()
    try:
        yield
    finally:
        beat.stop()
        store.files.remove(COLLECTION_MARKER)
