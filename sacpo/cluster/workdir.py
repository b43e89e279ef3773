"""Folders on this machine's disk that do not outlive the processes they are for, however these end."""

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
    """An empty folder for this process, removed when it is done.

    A process that is killed removes nothing, and what it leaves may be a checkpoint: the next process here that asks
    for a folder does it. Whose lock nobody holds is dead.

    Args:
        name: What the folder's name begins with.

    Raises:
        SacpoError: the place for such folders, below $TMPDIR, is somebody else's.
    """
    root = place()
    with (root / "all").open("w") as everybody:
        fcntl.flock(everybody, fcntl.LOCK_EX)
        for lock in root.glob("*.lock"):
            with contextlib.suppress(BlockingIOError), lock.open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(lock)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
        mine = _lock(folder).open("w")
        fcntl.flock(mine, fcntl.LOCK_EX)
    with mine:
        try:
            yield folder
        finally:
            _remove(_lock(folder))


def place() -> Path:
    """Where these folders are: this user's own, as what is read back from there is trusted."""
    root = Path(tempfile.gettempdir()) / f"sacpo-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise SacpoError(f"{root} belongs to somebody else; set TMPDIR to a folder of your own")
    return root


def _lock(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _remove(lock: Path) -> None:
    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
    lock.unlink(missing_ok=True)
