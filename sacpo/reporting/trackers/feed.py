"""Sends a sweep to its trackers in the background, so that a slow or unreachable tracker never holds the sweep up."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacpo.errors import SacpoError, first_line
from sacpo.reporting.trackers.runs import TrackedRun, Tracker, sweep_run, trial_runs
from sacpo.store.backends import LocalBackend

if TYPE_CHECKING:
    from sacpo.planning.plan import Plan
    from sacpo.results.load import Results
    from sacpo.spaces.report import TrackerName
    from sacpo.spaces.space import Space
    from sacpo.store.step_store import Store

_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboardX", "trackio": "trackio"}
_ENVIRONMENT: dict[TrackerName, tuple[str, ...]] = {
    "wandb": ("WANDB_PROJECT",),
    "mlflow": ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"),
    "trackio": ("TRACKIO_PROJECT", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"),
}
_PATIENCE_S = 60.0  # that the end of a sweep waits for a tracker that takes nothing


def trackers_of(space: Space, environment: Mapping[str, str] = os.environ) -> list[TrackerName]:
    """The trackers of a sweep: those that `report.to` names, else those that the environment is set up for.

    Raises:
        SacpoError: the package of a tracker is not installed.
    """
    names = list(dict.fromkeys(space.report.to)) if space.report is not None else []
    reasons = dict.fromkeys(names, "report.to")
    if space.report is None:
        for name, variables in _ENVIRONMENT.items():
            for variable in variables:
                if environment.get(variable):
                    reasons.setdefault(name, f"the environment variable {variable}")
    for name, reason in reasons.items():
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise SacpoError(
                f"{reason} asks for the tracker {name}, whose package {_PACKAGES[name]} is not installed: "
                f"pip install 'sacpo[{name}]', or set report.to without it (report.to=[] for no tracker)"
            )
    return list(reasons)


class Trackers:
    """All trackers of a sweep, each with a thread of its own.

    Args:
        names: The trackers.
        plan: The plan.
        store: The store.
        folder: The results folder; `tracker-NAME.json` in it says what each tracker has got.
    """

    def __init__(self, names: list[TrackerName], plan: Plan, store: Store, folder: Path) -> None:
        self._feeds = [_Feed(name, plan, store, folder) for name in names]

    def update(self, results: Results) -> None:
        """Send what is new in the tables. Returns at once."""
        for feed in self._feeds:
            feed.put(results, is_last=False)

    def close(self, results: Results) -> list[str]:
        """Send the rest and the front, whose picture is there by now; wait while a tracker takes runs.

        A tracker that takes nothing is waited for one minute.

        Returns:
            One warning for each tracker that did not get everything.
        """
        for feed in self._feeds:
            feed.put(results, is_last=True)
        start = time.monotonic()
        for feed in self._feeds:
            while feed.is_alive() and time.monotonic() - max(start, feed.took_at) < _PATIENCE_S:
                feed.join(1.0)
        return [warning for feed in self._feeds if (warning := feed.warning())]


class _Feed(threading.Thread):
    """Sends tables to one tracker; ends at the last ones, or when the tracker fails."""

    def __init__(self, name: TrackerName, plan: Plan, store: Store, folder: Path) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)
        self.tracker_name, self.plan, self.store, self.folder = name, plan, store, folder
        self.error, self.took_at = "", 0.0
        self._tables: queue.Queue[tuple[Results, bool]] = queue.Queue()
        self._tracker: Tracker | None = None
        self._state = LocalBackend(folder)
        self._file = f"tracker-{name}.json"

    def put(self, results: Results, is_last: bool) -> None:
        if not self.ident:
            self.start()
        self._tables.put((results, is_last))

    def warning(self) -> str:
        reason = f"took nothing for {_PATIENCE_S:.0f} s" if self.is_alive() else self.error
        again = "; the sweep is not affected, and the same command again sends what is missing"
        return f"tracker {self.tracker_name}: {reason}{again}" if reason else ""

    def run(self) -> None:
        is_last = False
        try:
            sent = json.loads(self._state.read(self._file) or b"{}")
            while not is_last:
                results, is_last = self._tables.get()
                while not self._tables.empty():  # only the newest tables count
                    results, is_last = self._tables.get()
                self._send_new(results, is_last, sent)
        except Exception as error:  # whatever a tracker's client raises, the sweep goes on
            self.error = first_line(error) or type(error).__name__

    def _send_new(self, results: Results, is_last: bool, sent: dict[str, dict[str, Any]]) -> None:
        runs = list(trial_runs(self.plan, self.store, results))
        begun = [run for run in runs if run.curves or run.values or run.status == "failed"]
        news = [run for run in begun if sent.get(run.key) != _summary(run)]
        for run in news:
            known = sent.get(run.key, {}).get("stages", [])
            self._send(replace(run, curves={name: curve for name, curve in run.curves.items() if name not in known}))
            sent[run.key] = _summary(run)
            self._state.write(self._file, json.dumps(sent, indent=1).encode())
        if is_last:
            last = sweep_run(self.plan, results, self.folder / "pareto.png")
            if news or sent.get(last.key) != _summary(last):
                self._send(last)
                sent[last.key] = _summary(last)
                self._state.write(self._file, json.dumps(sent, indent=1).encode())

    def _send(self, run: TrackedRun) -> None:
        if self._tracker is None:
            self._tracker = _open(self.tracker_name, self.plan, self.folder)
        self._tracker.send(run)
        self.took_at = time.monotonic()


def _summary(run: TrackedRun) -> dict[str, Any]:
    return {"status": run.status, "stages": list(run.curves), "values": run.values}


def _open(name: TrackerName, plan: Plan, folder: Path) -> Tracker:
    match name:
        case "wandb":
            from sacpo.reporting.trackers.wandb_tracker import WandbTracker

            return WandbTracker(plan, folder)
        case "mlflow":
            from sacpo.reporting.trackers.mlflow_tracker import MLflowTracker

            return MLflowTracker(plan)
        case "tensorboard":
            from sacpo.reporting.trackers.tensorboard_tracker import TensorBoardTracker

            return TensorBoardTracker(folder)
        case "trackio":
            from sacpo.reporting.trackers.trackio_tracker import TrackioTracker

            return TrackioTracker(plan)
