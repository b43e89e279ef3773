"""The setting of a space that names trackers: Weights & Biases, MLflow, TensorBoard, Trackio."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field

from sacpo.spaces.base import Strict

TrackerName = Literal["wandb", "mlflow", "tensorboard", "trackio"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)


class Report(Strict):
    """Where the progress of a sweep is reported besides the results folder. It changes no step's id."""

    to: list[TrackerName] = Field(
        description="trackers that get a run for every trial: wandb, mlflow, tensorboard, trackio; none if empty"
    )
