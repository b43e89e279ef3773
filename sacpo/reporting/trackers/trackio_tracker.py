"""Trackio: one project for each name of a sweep, one group for the sweep, one run for each trial."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from sacpo.errors import SacpoError
from sacpo.reporting.trackers.runs import TrackedRun, sweep_key

if TYPE_CHECKING:
    from sacpo.planning.plan import Plan


class TrackioTracker:
    """Sends runs to the project `TRACKIO_PROJECT`: on this machine, or where `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL`
    says.

    Args:
        plan: The plan. The project has the name of its space if the environment gives none; `NAME-KEY` is the group.
    """

    def __init__(self, plan: Plan) -> None:
        self.group = f"{plan.space.name}-{sweep_key(plan)[:8]}"
        self.project = os.environ.get("TRACKIO_PROJECT") or plan.space.name

    def send(self, run: TrackedRun) -> None:
        """Create or continue the run, log, and close it.

        Raises:
            SacpoError: the run is not on this machine, or not on the server. Trackio itself only prints that.
        """
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        tracked = trackio.init(
            self.project,
            name=f"{run.name} {run.key[:6]}",  # Trackio continues a run by its name
            group=self.group,
            config={"status": run.status, **run.config},
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        for stage, curves in run.curves.items():
            for row in curves.to_dict("records"):
                values = {f"{stage}/{column}": value for column, value in row.items() if not math.isnan(value)}
                tracked.log(values, step=int(row["update"]))
        tracked.log(dict(run.values))
        if run.front is not None and run.table is not None:
            table = trackio.Table(dataframe=run.table.astype(str))
            tracked.log({"front": trackio.Image(run.front), "trials": table})
        trackio.finish()
        if os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"):
            if SQLiteStorage.has_pending_data(self.project):
                raise SacpoError(f"the server did not take all; Trackio keeps it in {trackio.utils.TRACKIO_DIR}")
        elif tracked.config != SQLiteStorage.get_run_config(self.project, tracked.name, run_id=tracked.id):
            raise SacpoError(f"nothing could be written to {trackio.utils.TRACKIO_DIR} (TRACKIO_DIR)")
