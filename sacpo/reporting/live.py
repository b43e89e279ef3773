"""Progress of a running sweep: a live table on a terminal, else a line for every step that ends.

A thread of the process that runs the sweep asks which steps have ended, reads their records from the store, and
rebuilds the tables of the results folder whenever a trial ends.
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
from sacpo.planning.durations import Remaining, remaining_steps
from sacpo.planning.metrics import InspectionMetrics
from sacpo.planning.plan import Plan
from sacpo.planning.records import StepRecord
from sacpo.reporting.formats import finite_or_none, number_text
from sacpo.reporting.in_progress import StepInProgress, steps_in_progress
from sacpo.results.collect import collect
from sacpo.results.load import Results
from sacpo.results.sweep_facts import SweepFacts
from sacpo.spaces.evaluation import CRITERIA
from sacpo.store.past_steps import past_steps
from sacpo.store.step_store import Store

_POLL_S = 1.0
_POLL_CLAIMS_S = 3.0  # more requests than the poll of records
_SHOWN_STEPS = 6


class Progress:
    """Shows the progress of a sweep; a context manager.

    Args:
        plan: The plan.
        store: The store.
        facts: The facts of the sweep.
        run: Id of the run that is shown.
        resolved: Returns the steps that have ended.
        on_trial: Called with the tables whenever a trial has ended.
        console: Where progress is shown.
        live: Show a live table if the console is a terminal. A debugger needs the terminal for itself.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        facts: SweepFacts,
        run: str,
        resolved: Callable[[], Collection[str]],
        on_trial: Callable[[Results], None],
        console: Console,
        live: bool = True,
    ) -> None:
        self.plan, self.store, self.facts, self.run = plan, store, facts, run
        self.resolved, self.on_trial, self.console = resolved, on_trial, console
        self.started = time.monotonic()
        self.records: dict[str, StepRecord] = store.records(plan.steps)
        self.done_before = len(self.records)
        self._remaining: Remaining | None = None  # of the outcomes so far
        self.failures: dict[str, str] = {}
        self.results = self._collect()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        is_live = live and console.is_terminal
        self._past = past_steps(store, plan) if is_live else []
        self.in_progress: list[StepInProgress] = []
        self._claims_read_at = 0.0
        self._live: Live | None = None
        if is_live:
            # The console has a copy of the real output. rich would print on it what libraries print, which goes to
            # sweep.log. The summary has the last table.
            self._live = Live(
                console=console, refresh_per_second=4, get_renderable=self._render, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        if self.plan.inspection in self.records:
            self._notes(self.records[self.plan.inspection])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()

    def _collect(self) -> Results:
        return collect(self.plan, self.store, self.facts, self.records, failures_of={self.run})

    def _watch(self) -> None:
        is_last, previous_error = False, ""
        while not is_last:
            is_last = self._stop.wait(_POLL_S)  # the last look is at all steps
            try:
                self._update(self.plan.steps.keys() if is_last else self.resolved())
                if self._live is not None and time.monotonic() - self._claims_read_at > _POLL_CLAIMS_S:
                    self.in_progress = steps_in_progress(self.plan, self.store, self.records, self.failures)
                    self._claims_read_at = time.monotonic()
            except SacpoError as error:  # such as a full disk or an unreachable bucket; the next look may succeed
                if str(error) != previous_error:
                    previous_error = str(error)
                    self._line(previous_error)

    def _update(self, ended: Collection[str]) -> None:
        """Read the outcomes of steps that have ended since the last look."""
        before = self._trials_done(), len(self.failures)
        for step_id, step in self.plan.steps.items():
            is_new = step_id in ended and step_id not in self.records and step_id not in self.failures
            if not is_new or not self.records.keys() >= set(step.parents.values()):
                continue
            record = self.store.record(step_id)
            failure = self.store.failure(step_id, self.run) if record is None else None
            self._remaining = None
            if record is not None:
                self.records[step_id] = record
                self._line(", ".join(filter(None, [f"{step.label}: {record.seconds:.0f} s", record.metrics.remark])))
                self._notes(record)
            elif failure is not None:
                self.failures[step_id] = failure.error
                log = f" (log: {self.store.location(failure.log)})" if failure.log else ""
                self._line(f"{step.label}: FAILED: {failure.error}{log}")
        if (self._trials_done(), len(self.failures)) != before:
            self.results = self._collect()
            self.on_trial(self.results)

    def _trials_done(self) -> int:
        return sum(self.records.keys() >= set(trial.steps) for trial in self.plan.trials)

    def _notes(self, record: StepRecord) -> None:
        """What the inspection found out, before anything is trained; also above a live table."""
        if isinstance(record.metrics, InspectionMetrics):
            for note in record.metrics.notes:
                self.console.print(f"note: {note}", markup=False, highlight=False)

    def _line(self, text: str) -> None:
        if self._live is None:
            self.console.print(f"[{len(self.records)}/{len(self.plan.steps)}] {text}", markup=False, highlight=False)

    def _render(self) -> Group:
        elapsed = time.monotonic() - self._claims_read_at
        steps = [step for step in self.in_progress if step.step_id not in self.records]
        lines = [f"  {step.label} on {step.host}, {step.seconds + elapsed:.0f} s" for step in steps[:_SHOWN_STEPS]]
        if len(steps) > _SHOWN_STEPS:
            lines.append(f"  and {len(steps) - _SHOWN_STEPS} more steps")
        return Group(Text("\n".join([self.status(), *lines])), trial_table(self.results.trials))

    def status(self) -> str:
        """Number of steps that are done, time since the start, and the estimated time to the end."""
        left = self._seconds_left()
        parts = [
            f"{len(self.records)} of {len(self.plan.steps)} steps done",
            f"{time.monotonic() - self.started:.0f} s",
        ]
        if self.done_before:
            parts.append(f"{self.done_before} done before")
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        if left is not None and len(self.records) + len(self.failures) < len(self.plan.steps):
            parts.append(f"about {left:.0f} s left")
        return " · ".join(parts)

    def _seconds_left(self) -> float | None:
        if self._remaining is None:
            self._remaining = remaining_steps(self.plan, self.records, self._past, self.failures)
        done_now = sum(record.seconds for record in self.records.values() if record.run == self.run)
        running = sum(step.seconds for step in self.in_progress if step.step_id not in self.records)
        return self._remaining.seconds_left(done_now, running, time.monotonic() - self.started)


def trial_table(trials: pd.DataFrame) -> Table:
    """The trials with their win rates and intervals, as a table for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("trial", *CRITERIA, "KL", "status"):
        table.add_column(column, overflow="fold", justify="left" if column in ("trial", "status") else "right")
    for _, row in trials.iterrows():
        front = " *" if row["on_front"] else ""
        table.add_row(
            Text(f"{row['label']}{front}"),
            *(_rate(row, criterion) for criterion in CRITERIA),
            "" if finite_or_none(row["kl_to_sft"]) is None else number_text(row["kl_to_sft"], 2),
            f"{row['status']}, stopped" if row.get("stopped") else str(row["status"]),
        )
    return table


def _rate(row: Any, criterion: str) -> str:
    if pd.isna(row[criterion]):
        return ""
    return f"{row[criterion]:.3f} ({row[f'{criterion}_low']:.3f}-{row[f'{criterion}_high']:.3f})"
