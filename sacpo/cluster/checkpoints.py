"""Checkpoints of a stage on a worker group: the latest one is kept in the store, every worker uploads its own part.

A worker group trains many stages (`sacpo.cluster.worker_groups`), while Ray Train keeps the checkpoints of a group in
one place and resumes from them when the group restarts. So each stage keeps its own, in its checkpoint folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.train.collective import barrier

from sacpo.errors import StoreError
from sacpo.execution.job import Job
from sacpo.store.folder_transfer import download_folder, upload_folder

LATEST = "latest.json"
"""File that names the latest complete checkpoint."""
_SIZES = "sizes-"  # prefix of the file in which a worker lists the files that it wrote, with their sizes


class DamagedCheckpoint(StoreError):
    """A checkpoint lacks files, a file is not as long as it was when it was written, or `LATEST` is damaged."""


class GroupCheckpoints:
    """The checkpoints of one stage, seen by one worker of the group.

    Args:
        job: The training job.
        rank: Number of the worker.
        workers: Workers of the group. ZeRO-3 cannot resume with another number of them, so a group of another size
            does not see these checkpoints and starts the stage again; nor does one with other optimizer offloading.
    """

    def __init__(self, job: Job[Any], rank: int, workers: int) -> None:
        self._files = job.store.files
        offload = "-offload" if job.resources.optimizer_offload else ""
        self._root = f"{job.store.checkpoint_key(job.step.id)}/{job.resources.sharding}{offload}-{workers}"
        self._rank, self._workers = rank, workers

    def keep(self, folder: Path, update: int) -> None:
        """Upload this worker's part of a checkpoint and wait until all workers have; earlier checkpoints are deleted.

        Args:
            folder: This worker's part.
            update: Number of updates made.
        """
        sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        (folder / f"{_SIZES}{self._rank}.json").write_text(json.dumps(sizes))
        upload_folder(self._files, folder, f"{self._root}/{update}")
        barrier()
        if self._rank == 0:
            self._publish(update)

    def _publish(self, update: int) -> None:
        """Make a complete checkpoint the latest one, atomically, and delete the others."""
        self._files.write(f"{self._root}/{LATEST}", json.dumps({"update": update}).encode())
        for name in self._files.list_names(self._root):
            # A worker that is ahead may be uploading the next one.
            if name != LATEST and int(name) < update:
                self._files.remove(f"{self._root}/{name}")

    def latest(self, folder: Path) -> Path | None:
        """Download the latest checkpoint, with the parts of all workers, into a new folder.

        Returns:
            `folder`; None if there is no checkpoint.

        Raises:
            DamagedCheckpoint: it is not as it was written.
        """
        content = self._files.read(f"{self._root}/{LATEST}")
        if content is None:
            return None
        try:
            update = int(json.loads(content)["update"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpoint(f"{LATEST} of the checkpoints is damaged: {error}") from error
        folder.mkdir()
        download_folder(self._files, f"{self._root}/{update}", folder)
        self._verify(folder)
        return folder

    def _verify(self, folder: Path) -> None:
        """Check that a downloaded checkpoint has the parts of all workers, with all files in full length."""
        lists = list(folder.glob(f"{_SIZES}*.json"))
        try:
            sizes = {name: size for path in lists for name, size in json.loads(path.read_text()).items()}
        except ValueError as error:
            raise DamagedCheckpoint(f"the checkpoint is damaged: {error}") from error
        for name, size in sizes.items():
            actual = (folder / name).stat().st_size if (folder / name).exists() else 0
            if actual != size:
                raise DamagedCheckpoint(f"the checkpoint is damaged: {name} has {actual} bytes instead of {size}")
        if len(lists) != self._workers:
            raise DamagedCheckpoint(
                f"the checkpoint is damaged: it has the parts of {len(lists)} of {self._workers} workers"
            )
