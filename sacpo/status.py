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
from sacpo.plan import Plan
from sacpo.store import LEASE, Heart, Store

DEFAULT_RESULTS = Path("results")


class Register:
    """A running sweep's entry; a context manager.

    Args:
        plan: Its plan.
        store: Its store.
        sweep: What `sweep.json` will hold.
    """

    def __init__(self, plan: Plan, store: Store, sweep: dict[str, Any]) -> None:
        self.folder, self.run = store.root / "sweeps", sweep["run"]
        names = ("run", "results", "command", "started", "git_commit")
        self.entry = {name: sweep[name] for name in names} | {
            "name": plan.space.name,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "steps": list(plan.steps),
            "trials": len(plan.trials),
        }
        self._heart = Heart((self.folder / f"{self.run}.beat").touch)

    def __enter__(self) -> Register:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{self.run}.beat").touch()
        (self.folder / f"{self.run}.json").write_text(json.dumps(self.entry, indent=1))
        self._heart.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._heart.stop()
        (self.folder / f"{self.run}.ended").write_text("stopped" if error else "ended")


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
    for path in (store.root / "sweeps").glob("*.json"):
        entry = json.loads(path.read_text())
        done = sum(store.record(step) is not None for step in entry["steps"])
        state = _state(path)
        if state == "ended":
            state = "done" if done == len(entry["steps"]) else "failed"
        found.append(
            Sweep(entry["name"], state, done, len(entry["steps"]), entry["trials"], entry["started"],
                  entry["results"])
        )  # fmt: skip
    return sorted(found, key=lambda sweep: -sweep.started)


def _state(path: Path) -> str:
    ended, beat = path.with_suffix(".ended"), path.with_suffix(".beat")
    if ended.exists():
        return ended.read_text()
    return "running" if time.time() - beat.stat().st_mtime < LEASE else "silent"


def stores(results: Path | None, store: str | None) -> list[Store]:
    """The stores that are asked about: the one named, that of a results folder, or those of all results here.

    Raises:
        SacpoError: there is none.
    """
    if store is not None:
        return [Store(store)]
    folders = [results] if results is not None else sorted(DEFAULT_RESULTS.glob("*"))
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
