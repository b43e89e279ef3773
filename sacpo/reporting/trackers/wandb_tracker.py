"""Weights & Biases: one group for each sweep, one run for each trial, and one for the sweep itself."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sacpo.errors import SacpoError
from sacpo.reporting.trackers.runs import TrackedRun, sweep_key

if TYPE_CHECKING:
    from sacpo.planning.plan import Plan

_TIMEOUT_S = 30


class WandbTracker:
    """Sends runs to the project `WANDB_PROJECT` (default `sacpo`); `WANDB_MODE=offline` keeps them in the results
    folder.

    Args:
        plan: The plan. `NAME-KEY` of its space is the group.
        folder: The results folder.

    Raises:
        SacpoError: no API key is known. The client would ask for one on the terminal.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        import wandb

        self.folder = folder
        self.group = f"{plan.space.name}-{sweep_key(plan)[:8]}"
        self.project = os.environ.get("WANDB_PROJECT") or "sacpo"
        offline = os.environ.get("WANDB_MODE", "online") != "online"
        if not offline and not wandb.login(prompt=False, verify=False):
            raise SacpoError("no API key is known; set WANDB_API_KEY, run `wandb login`, or set WANDB_MODE=offline")

    def send(self, run: TrackedRun) -> None:
        """Create or resume the run, log, and close it."""
        import wandb

        with wandb.init(
            project=self.project,
            group=self.group,
            job_type="trial" if run.front is None else "sweep",
            id=run.key,
            name=run.name,
            config=run.config,
            dir=str(self.folder),
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=_TIMEOUT_S, x_disable_stats=True, disable_code=True
            ),
        ) as tracked:
            for stage, curves in run.curves.items():
                update = f"{stage}/update"
                tracked.define_metric(f"{stage}/*", step_metric=update)
                for row in curves.to_dict("records"):
                    tracked.log({f"{stage}/{column}": value for column, value in row.items() if not math.isnan(value)})
            if run.values:
                tracked.log(run.values)
            if run.front is not None and run.table is not None:
                table = wandb.Table(dataframe=run.table.astype(str))
                tracked.log({"front": wandb.Image(str(run.front)), "trials": table})
            if run.status != "pending":
                tracked.summary["status"] = run.status
