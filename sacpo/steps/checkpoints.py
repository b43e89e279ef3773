"""Checkpoints of a stage that is trained in the calling process: the latest one is kept in the store."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Self

from pyarrow import fs

from sacpo.execution.job import Job

_NAME = "in-process"  # apart from those of worker groups: ZeRO-3 checkpoints cannot be read without sharding
_COMPLETE = ".complete"


class LocalCheckpoints:
    """A context manager with a temporary folder for checkpoints and the latest one's place in the store.

    Args:
        job: The training job.
    """

    def __init__(self, job: Job[Any]) -> None:
        self._store = job.store.filesystem() or fs.LocalFileSystem()
        self._root = f"{job.checkpoint_uri}/{_NAME}"

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
        fs.copy_files(
            f"{self._root}/{max(updates)}",
            str(folder),
            source_filesystem=self._store,
            destination_filesystem=fs.LocalFileSystem(),
        )
        return folder

    def keep(self, folder: Path, updates: int) -> None:
        """Copy a checkpoint to the store; a mark is written when it is complete, and earlier ones are deleted."""
        earlier, target = self._complete(), f"{self._root}/{updates}"
        self._store.create_dir(target, recursive=True)
        fs.copy_files(str(folder), target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=self._store)
        with self._store.open_output_stream(target + _COMPLETE) as mark:
            mark.write(b"")
        for number in earlier - {updates}:
            self._store.delete_file(f"{self._root}/{number}{_COMPLETE}")
            self._store.delete_dir(f"{self._root}/{number}")

    def _complete(self) -> set[int]:
        """Numbers of updates of the complete checkpoints."""
        entries = self._store.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        return {int(entry.base_name.removesuffix(_COMPLETE)) for entry in entries if entry.extension == _COMPLETE[1:]}
