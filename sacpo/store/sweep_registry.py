"""Which sweeps a store has seen: each leaves word of what it is about, that it is alive, and how it ended.

Under `<store>/sweeps/`: `<run>.json` (written once), `<run>.beat` (its time of change is the last sign of life) and
`<run>.ended`. Anyone who sees the store can read them; `python -m sacpo.sweep --status` does.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacpo.errors import SacpoError
from sacpo.planning.plan import Plan
from sacpo.store.heartbeat import LEASE, Heartbeat
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import Store

DEFAULT_RESULTS = Path("results")


class Register:
    """A running sweep's entry; a context manager.

    Args:
        plan: Its plan.
        store: Its store.
        sweep: What `sweep.json` will hold.
    """

    def __init__(self, plan: Plan, store: Store, sweep: dict[str, Any]) -> None:
        self.files, self.key = store.files, f"sweeps/{sweep['run']}"
        names = ("run", "results", "command", "started", "git_commit")
        self.entry = {name: sweep[name] for name in names} | {
            "name": plan.space.name,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "steps": list(plan.steps),
            "trials": len(plan.trials),
        }
        self._heart = Heartbeat(self._beat)

    def __enter__(self) -> Register:
        self._beat()
        self.files.write(f"{self.key}.json", json.dumps(self.entry, indent=1).encode())
        self._heart.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._heart.stop()
        self.files.write(f"{self.key}.ended", b"stopped" if error else b"ended")

    def _beat(self) -> None:
        self.files.write(f"{self.key}.beat", b"")


@dataclass(frozen=True)
class Sweep:
    """A sweep as its store knows it.

    Attributes:
        name: Its space's name.
        state: `running`; `silent` (no sign of life: it was killed, or its machine is gone); `stopped`; `done`, or
            `failed` where it ended with steps not done.
        done: Steps done, by whomever.
        steps: Steps of its plan.
        trials: Trials of its plan.
        started: When, seconds since the epoch.
        results: Its folder.
    """

    name: str
    state: str
    done: int
    steps: int
    trials: int
    started: float
    results: str


def sweeps(store: Store) -> list[Sweep]:
    """All sweeps that a store has seen, the latest first."""
    found = []
    names = store.files.names("sweeps")
    for run in [name.removesuffix(".json") for name in names if name.endswith(".json")]:
        entry = json.loads(store.files.read(f"sweeps/{run}.json") or b"")
        done = len(store.records(entry["steps"]))
        state = _state(store, run)
        if state == "ended":
            state = "done" if done == len(entry["steps"]) else "failed"
        found.append(
            Sweep(entry["name"], state, done, len(entry["steps"]), entry["trials"], entry["started"],
                  entry["results"])
        )  # fmt: skip
    return sorted(found, key=lambda sweep: -sweep.started)


def _state(store: Store, run: str) -> str:
    ended = store.files.read(f"sweeps/{run}.ended")
    if ended is not None:
        return ended.decode()
    age = store.files.age(f"sweeps/{run}.beat")
    return "running" if age is not None and age < LEASE else "silent"


def stores(results: str | None, store: str | None) -> list[Store]:
    """The stores that are asked about: the one named, that of a results folder, or those of all results here.

    Raises:
        SacpoError: there is none.
    """
    if store is not None:
        return [Store(store)]
    folders = [ResultsLocation(results).fetch()] if results is not None else sorted(DEFAULT_RESULTS.glob("*"))
    roots = []
    for folder in folders:
        tables = folder / "sweep.json"
        if tables.exists():
            roots.append(json.loads(tables.read_text())["store"])
        elif (folder / "store").exists():
            roots.append(str(folder / "store"))
    if not roots:
        raise SacpoError(
            f"--status: no sweep has left anything in {results or DEFAULT_RESULTS}; "
            "give a results folder, or a store with --store"
        )
    return [Store(root) for root in dict.fromkeys(roots)]


def describe(found: list[Sweep]) -> str:
    """A line for each sweep."""
    lines = [f"{'started':16}  {'state':8}  {'steps':>11}  {'trials':>6}  sweep"]
    for sweep in found:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(sweep.started))
        progress = f"{sweep.done} of {sweep.steps}"
        lines.append(
            f"{started:16}  {sweep.state:8}  {progress:>11}  {sweep.trials:>6}  {sweep.name} ({sweep.results})"
        )
    return "\n".join(lines)
