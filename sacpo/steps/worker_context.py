"""Where a training worker stands in its group, and what it is given by the process that set the group up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WorkerContext:
    """A worker's place in its group.

    Attributes:
        world_size: Workers of the group.
        rank: Number of this worker.
        deepspeed: DeepSpeed's configuration; None for plain data-parallel training.
        resume_from: Folder of a checkpoint to continue from.
        on_checkpoint: Called on every worker with its checkpoint folder and the number of updates.
        workdir: This worker's own folder for checkpoints.
        is_preempted: Asked on every worker after every update: whether a checkpoint is due since a machine is about to
            be taken away.
    """

    world_size: int
    rank: int
    deepspeed: dict[str, Any] | None
    resume_from: Path | None
    on_checkpoint: Callable[[Path, int], None]
    workdir: Path
    is_preempted: Callable[[], bool] = lambda: False
