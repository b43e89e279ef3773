"""Checkpoints of a worker group through Ray Train: every worker uploads its own part of the files."""

from __future__ import annotations

import json
from pathlib import Path

import ray.train

from sacpo.errors import StoreError

_SIZES = "sizes-"  # prefix of the file in which a worker lists the files that it wrote, with their sizes


class DamagedCheckpoint(StoreError):
    """A checkpoint lacks files, or a file is not as long as it was when it was written."""


def report_checkpoint(folder: Path, update: int) -> None:
    """Report a checkpoint to Ray Train: upload this worker's part and wait until all workers have uploaded theirs.

    Args:
        folder: This worker's part.
        update: Number of updates made.
    """
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    (folder / f"{_SIZES}{ray.train.get_context().get_world_rank()}.json").write_text(json.dumps(sizes))
    ray.train.report({"update": update}, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))


def verify_checkpoint(folder: Path, workers: int) -> None:
    """Check that a downloaded checkpoint has the parts of all workers, with all files in full length.

    Raises:
        DamagedCheckpoint: it has not.
    """
    lists = list(folder.glob(f"{_SIZES}*.json"))
    try:
        sizes = {name: size for path in lists for name, size in json.loads(path.read_text()).items()}
    except ValueError as error:
        raise DamagedCheckpoint(f"the checkpoint is damaged: {error}") from error
    for name, size in sizes.items():
        actual = (folder / name).stat().st_size if (folder / name).exists() else 0
        if actual != size:
            raise DamagedCheckpoint(f"the checkpoint is damaged: {name} has {actual} bytes instead of {size}")
    if len(lists) != workers:
        raise DamagedCheckpoint(f"the checkpoint is damaged: it has the parts of {len(lists)} of {workers} workers")
