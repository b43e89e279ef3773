"""Temporary folders on this machine's disk that disappear with the process that uses them, even if it is killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sacpo.errors import SacpoError


@contextlib.contextmanager
def workdir(name: str) -> Iterator[Path]:
    """An empty folder for this process, which is deleted on exit.

    A killed process leaves its folder behind, with a checkpoint perhaps; the next process on this machine that asks for
    a folder deletes every folder whose lock is free.

    Args:
        name: Prefix of the folder's name.

    Raises:
        SacpoError: another user owns the folder for such folders, below $TMPDIR.
    """
    root = workdir_root()
    with (root / "all").open("w") as root_lock:
        fcntl.flock(root_lock, fcntl.LOCK_EX)
        for stale in root.glob("*.lock"):
            with contextlib.suppress(BlockingIOError), stale.open("w") as stale_lock:
                fcntl.flock(stale_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(stale)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
        lock = _lock_path(folder).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        try:
            yield folder
        finally:
            _remove(_lock_path(folder))


def workdir_root() -> Path:
    """The folder that holds these folders. It must be this user's own, since files read back from it are trusted.

    Raises:
        SacpoError: another user owns it.
    """
    root = Path(tempfile.gettempdir()) / f"sacpo-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise SacpoError(f"{root} belongs to another user; set TMPDIR to a folder of your own")
    return root


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove(lock_path: Path) -> None:
    """Delete a folder by its lock file, then the lock file."""
    shutil.rmtree(lock_path.with_suffix(""), ignore_errors=True)
    lock_path.unlink(missing_ok=True)
