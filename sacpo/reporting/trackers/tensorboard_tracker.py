"""TensorBoard: one folder of event files for each run, in `tensorboard/` of the results folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

from matplotlib.image import imread

from sacpo.reporting.trackers.runs import TrackedRun


class TensorBoardTracker:
    """Writes event files that `tensorboard --logdir RESULTS/tensorboard` shows.

    Args:
        folder: The results folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"

    def send(self, run: TrackedRun) -> None:
        """Write a further event file into the run's folder; TensorBoard joins them."""
        from tensorboardX import SummaryWriter  # loads torch if it is there

        folder = f"{re.sub(r'[^0-9A-Za-z.@=_-]+', '_', run.name)}-{run.key[:6]}"
        with SummaryWriter(str(self.folder / folder)) as writer:
            writer.add_text("config", f"```\n{json.dumps(run.config, indent=1)}\n```")
            for stage, curves in run.curves.items():
                for column in curves.columns.drop("update"):
                    for update, value in curves[["update", column]].dropna().itertuples(index=False):
                        writer.add_scalar(f"{stage}/{column}", value, int(update))
            for name, value in run.values.items():
                writer.add_scalar(name, value, 0)
            if run.front is not None:
                writer.add_image("front", imread(run.front)[..., :3], 0, dataformats="HWC")
            if run.table is not None:
                writer.add_text("trials", f"```\n{run.table.to_csv(index=False)}\n```")
