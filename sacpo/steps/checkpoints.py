"""Checkpoints of a stage that is trained in the calling process: the latest one is kept in the store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Self

from sacpo.execution.job import Job
from sacpo.store.folder_transfer import download_folder, upload_folder

_NAME = "in-process"  # apart from those of worker groups: ZeRO-3 checkpoints cannot be read without sharding
_COMPLETE = ".complete"


class LocalCheckpoints:
    """A context manager with a temporary folder for checkpoints and the latest one's place in the store.

    Args:
        job: The training job.
    """

    def __init__(self, job: Job[Any]) -> None:
        self._files = job.store.files
        self._root = f"{job.store.checkpoint_key(job.step.id)}/{_NAME}"

    def __enter__(self) -> Self:
        self._temporary = tempfile.TemporaryDirectory(prefix="sacpo-")
        self.workdir = Path(self._temporary.name)
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def latest(self) -> Path | None:
        """A copy of the latest complete checkpoint; None if there is none."""
        updates = self._complete()
        if not updates:
            return None
        folder = self.workdir / "resumed"
        folder.mkdir()
        download_folder(self._files, f"{self._root}/{max(updates)}", folder)
        return folder

    def keep(self, folder: Path, updates: int) -> None:
        """Copy a checkpoint to the store; a mark is written when it is complete, and earlier ones are deleted."""
        earlier, target = self._complete(), f"{self._root}/{updates}"
        upload_folder(self._files, folder, target)
        self._files.write(target + _COMPLETE, b"")
        for number in earlier - {updates}:
            self._files.remove(f"{self._root}/{number}{_COMPLETE}")
            self._files.remove(f"{self._root}/{number}")

    def _complete(self) -> set[int]:
        """Numbers of updates of the complete checkpoints."""
        names = self._files.list_names(self._root)
        return {int(name.removesuffix(_COMPLETE)) for name in names if name.endswith(_COMPLETE)}
