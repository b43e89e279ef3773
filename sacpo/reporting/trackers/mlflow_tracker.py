"""MLflow: one experiment for each name of a sweep, one parent run for the sweep, one child run for each trial."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any

from sacpo.reporting.trackers.runs import TrackedRun, sweep_key

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from sacpo.planning.plan import Plan

_KEY_TAG = "sacpo.key"
_BATCH = 500  # metrics in one request; MLflow allows 1000
_STATES = {"pending": "RUNNING", "done": "FINISHED", "failed": "FAILED"}


class MLflowTracker:
    """Sends runs to the server or store of `MLFLOW_TRACKING_URI`, into the experiment `MLFLOW_EXPERIMENT_NAME`.

    Args:
        plan: The plan. The experiment has the name of its space if the environment gives none.
    """

    def __init__(self, plan: Plan) -> None:
        # MLflow's own defaults try an unreachable server for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow.tracking import MlflowClient

        self.client: MlflowClient = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or plan.space.name
        experiment = self.client.get_experiment_by_name(name)
        self.experiment = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        self.parent = self._run_id(sweep_key(plan), plan.space.name, {})

    def _run_id(self, key: str, name: str, tags: dict[str, Any]) -> str:
        """MLflow's id of the run with this key, which is created if there is none."""
        runs = self.client.search_runs([self.experiment], f"tags.`{_KEY_TAG}` = '{key}'", max_results=1)
        if runs:
            return str(runs[0].info.run_id)
        run = self.client.create_run(self.experiment, run_name=name, tags={_KEY_TAG: key, **tags})
        return str(run.info.run_id)

    def send(self, run: TrackedRun) -> None:
        """Create or continue the run; a value that is sent again is a later value of the same metric."""
        from mlflow.entities import Metric, Param

        if run.front is not None:
            run_id = self.parent
        else:
            run_id = self._run_id(run.key, run.name, {"mlflow.parentRunId": self.parent})
        now = int(time.time() * 1000)
        metrics = [Metric(_metric(name), value, now, 0) for name, value in run.values.items()]
        for stage, curves in run.curves.items():
            for column in curves.columns.drop("update"):
                rows = curves[["update", column]].dropna().itertuples(index=False)
                metrics += [Metric(_metric(f"{stage}/{column}"), value, now, int(update)) for update, value in rows]
        params = [Param(name, str(value)) for name, value in run.config.get("trial", {}).items() if value is not None]
        self.client.log_batch(run_id, params=params)
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
        self.client.log_dict(run_id, run.config, "config.json")
        if run.front is not None and run.table is not None:
            self.client.log_artifact(run_id, str(run.front))
            self.client.log_text(run_id, run.table.to_csv(index=False), "trials.csv")
        state = _STATES[run.status]
        if state == "RUNNING":
            self.client.update_run(run_id, state)
        else:
            self.client.set_terminated(run_id, state)


def _metric(name: str) -> str:
    """A name with the characters that every version of MLflow allows."""
    return re.sub(r"[^\w./ -]", "-", name)
