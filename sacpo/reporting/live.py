"""What a sweep shows while it runs, by a thread of the driver: the dispatcher says what ended, the store says how.

On a terminal, a live table; elsewhere, a line for every step that ends. The results folder's tables are rebuilt
whenever a trial ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import pandas as pd
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sacpo.errors import SacpoError
from sacpo.planning.plan import Plan
from sacpo.results.tables import Results, collect
from sacpo.spaces.evaluation import CRITERIA
from sacpo.store.step_store import Store


class Progress:
    """Watches the store while a sweep runs; a context manager.

    Args:
        plan: The sweep's plan.
        store: Its store.
        sweep: What `sweep.json` will hold.
        resolved: Asked for the steps that have ended.
        on_trial: Called with the tables whenever a trial has ended.
        console: Where to show it.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        sweep: dict[str, Any],
        resolved: Callable[[], Collection[str]],
        on_trial: Callable[[Results], None],
        console: Console,
    ) -> None:
        self.plan, self.store, self.sweep, self.resolved = plan, store, sweep, resolved
        self.on_trial, self.console = on_trial, console
        self.started = time.monotonic()
        self.seen = store.records(plan.steps)
        self.reused = len(self.seen)
        self.failed: dict[str, str] = {}
        self.results = collect(plan, store, sweep, self.seen)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.console.is_terminal:
            self._live.stop()

    def _watch(self) -> None:
        over, trouble = False, ""
        while not over:
            over = self._stop.wait(1.0)  # at the end all is looked at once more, dispatcher or not
            try:
                self._look(self.plan.steps.keys() if over else self.resolved())
            except SacpoError as error:  # a disk that is full, a bucket that is silent: the next look may do better
                if str(error) != trouble:
                    trouble = str(error)
                    self._line(trouble)

    def _look(self, ended: Collection[str]) -> None:
        done, failed = self._done(), len(self.failed)
        for step_id, step in self.plan.steps.items():
            open_yet = step_id in ended and step_id not in self.seen and step_id not in self.failed
            if not open_yet or not self.seen.keys() >= set(step.parents.values()):
                continue
            record = self.store.record(step_id)
            failure = self.store.failure(step_id, self.sweep["run"]) if record is None else None
            if record is not None:
                self.seen[step_id] = record
                self._line(f"{step.label}: {record['seconds']:.0f} s")
            elif failure is not None:
                self.failed[step_id] = failure["error"]
                self._line(
                    f"{step.label}: FAILED: {failure['error']}"
                    + (f" (log: {failure['log']})" if failure["log"] else "")
                )
        if (self._done(), len(self.failed)) != (done, failed):
            self.results = collect(self.plan, self.store, self.sweep, self.seen)
            self.on_trial(self.results)

    def _done(self) -> int:
        """How many trials have all their steps done: the tables change with them."""
        return sum(self.seen.keys() >= set(trial.steps) for trial in self.plan.trials)

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(f"[{len(self.seen)}/{len(self.plan.steps)}] {text}", markup=False, highlight=False)

    def _render(self) -> Group:
        return Group(Text(self.status()), trial_table(self.results.trials))

    def status(self) -> str:
        """Steps done of planned, and the time that is left if the rest takes as long as the like of it did."""
        elapsed = time.monotonic() - self.started
        ran = len(self.seen) - self.reused
        left = self._left()
        parts = [f"{len(self.seen)} of {len(self.plan.steps)} steps done", f"{elapsed:.0f} s"]
        if self.reused:
            parts.append(f"{self.reused} reused")
        if self.failed:
            parts.append(f"{len(self.failed)} failed")
        if ran and left:
            parts.append(f"about {left:.0f} s left")
        return " · ".join(parts)

    def _left(self) -> float:
        """Seconds left: the open steps' expected work, at the rate at which work has got done so far."""
        known: dict[str, list[float]] = {}
        for step_id, record in self.seen.items():
            known.setdefault(self.plan.steps[step_id].kind, []).append(record["seconds"])
        overall = [s for values in known.values() for s in values]
        mean = {kind: sum(values) / len(values) for kind, values in known.items()}
        fallback = sum(overall) / len(overall) if overall else 0.0
        open_steps = [s for i, s in self.plan.steps.items() if i not in self.seen and i not in self.failed]
        work = sum(mean.get(step.kind, fallback) for step in open_steps)
        mine = [r["seconds"] for r in self.seen.values() if r["run"] == self.sweep["run"]]
        rate = sum(mine) / max(time.monotonic() - self.started, 1e-9)
        return work / rate if rate else 0.0


def trial_table(trials: pd.DataFrame) -> Table:
    """The trials with their win rates and intervals, as a table for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("trial", *CRITERIA, "KL", "status"):
        table.add_column(column, overflow="fold", justify="left" if column in ("trial", "status") else "right")
    for _, row in trials.iterrows():
        front = " *" if row["on_front"] else ""
        table.add_row(
            Text(f"{row['label']}{front}"),
            *(_interval(row, criterion) for criterion in CRITERIA),
            "" if pd.isna(row["kl_to_sft"]) else f"{row['kl_to_sft']:.2f}",
            str(row["status"]),
        )
    return table


def _interval(row: Any, criterion: str) -> str:
    if pd.isna(row[criterion]):
        return ""
    return f"{row[criterion]:.3f} ({row[f'{criterion}_low']:.3f}-{row[f'{criterion}_high']:.3f})"
