"""The local cache of a bucket: outputs of steps on this machine's disk, downloaded once and verified by their digests.

The cache lies under `$SACPO_CACHE` (default `~/.cache/sacpo`), at the same path on every machine of a cluster, with the
layout of the store's keys. A cached file is trusted only if its digest is right, so a partly written output is
downloaded again. `$SACPO_CACHE_GB` (default 50) bounds the size of the cached outputs: the least recently used are
deleted, but none that was used in the last 15 minutes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sacpo.errors import StoreError
from sacpo.hashing import content_id, file_digest
from sacpo.store.backends import BucketBackend
from sacpo.store.folder_transfer import PARALLEL_TRANSFERS

_IN_USE_S = 900.0  # an output that was used in the last so many seconds is not deleted


class Cache:
    """The local cache of one bucket.

    Args:
        backend: The bucket.

    Attributes:
        root: The cache's folder on this machine.
    """

    def __init__(self, backend: BucketBackend) -> None:
        self.backend = backend
        self.root = local_root(backend.uri)

    def __reduce__(self) -> tuple[Any, ...]:
        # Each machine computes its own root: `$SACPO_CACHE` and the home folder may differ.
        return type(self), (self.backend,)

    def fetch(self, key: str, digests: dict[str, str]) -> str | None:
        """Download those files of a folder that are not here with the right digest.

        Args:
            key: The folder.
            digests: Expected digest of each file, by its name.

        Returns:
            The problem if the bucket's file is missing or has another digest; None if all files are here.
        """
        folder = self.root / key
        with self._locked(key):
            remembered = self._remembered_digests(key)
            outdated = [
                name
                for name, digest in digests.items()
                if remembered.get(name) != [*size_and_mtime(folder / name), digest]
            ]
            with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
                problems = list(pool.map(lambda name: self._fetch_file(key, name, digests[name]), outdated))
            for name, problem in zip(outdated, problems, strict=True):
                if problem is not None:
                    return f"{name} {problem}"
            if outdated:
                self._remember_digests(key, digests)
            os.utime(folder)  # the time of last use, by which `_evict` chooses
        if outdated:
            self._evict()
        return None

    def _fetch_file(self, key: str, name: str, digest: str) -> str | None:
        """Download a file unless it is here; returns the problem, if there is one."""
        path = self.root / key / name
        if path.is_file() and file_digest(path) == digest:
            return None
        if not self.backend.download(f"{key}/{name}", path):
            return "is missing"
        return None if file_digest(path) == digest else "does not match its digest"

    def upload(self, key: str, pattern: str) -> dict[str, str]:
        """Upload the files of a local folder; returns their digests by name.

        Args:
            key: The folder.
            pattern: Glob pattern of the files.
        """
        folder = self.root / key
        digests = folder_digests(folder, pattern)
        with self._locked(key), ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
            list(pool.map(lambda name: self.backend.upload(folder / name, f"{key}/{name}"), digests))
            self._remember_digests(key, digests)
        self._evict()
        return digests

    def send(self, folder: Path, pattern: str = "*") -> None:
        """Upload the files below a local folder in their present state, without digests: logs and growing files."""
        for path in _files_below(folder, pattern):
            self.backend.upload(path, str(path.relative_to(self.root)))

    def receive(self, folder: Path) -> None:
        """Download the bucket's files one level below a folder (`folder/*/*`), except those that exist here."""
        key = str(folder.relative_to(self.root))
        subfolders = self.backend.list_names(key)
        for name in [f"{sub}/{name}" for sub in subfolders for name in self.backend.list_names(f"{key}/{sub}")]:
            if not (folder / name).exists():
                self.backend.download(f"{key}/{name}", folder / name)

    def drop(self, key: str) -> None:
        """Delete the local copy of a folder."""
        shutil.rmtree(self.root / key, ignore_errors=True)

    # Two files lie beside a cached folder: its lock, and its remembered digests. The latter hold size, time of change
    # and digest of each file at its last verification; while size and time stay the same, the file is not hashed again.

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the lock of a folder, which excludes other processes of this machine."""
        (self.root / key).mkdir(parents=True, exist_ok=True)
        with self._sidecar(key, "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _sidecar(self, key: str, suffix: str) -> Path:
        folder = self.root / key
        return folder.with_name(f".{folder.name}.{suffix}")

    def _remembered_digests(self, key: str) -> dict[str, list[object]]:
        try:
            remembered: dict[str, list[object]] = json.loads(self._sidecar(key, "digests").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return remembered

    def _remember_digests(self, key: str, digests: dict[str, str]) -> None:
        folder = self.root / key
        remembered = {name: [*size_and_mtime(folder / name), digest] for name, digest in digests.items()}
        self._sidecar(key, "digests").write_text(json.dumps(remembered))

    def _evict(self) -> None:
        """Delete the least recently used outputs until the others fit into `$SACPO_CACHE_GB`.

        Raises:
            StoreError: the variable is not a number.
        """
        text = os.environ.get("SACPO_CACHE_GB") or "50"
        try:
            limit_bytes = float(text) * 1e9
        except ValueError:
            raise StoreError(f"SACPO_CACHE_GB: {text!r} is not a number; give gigabytes, such as 50") from None
        outputs = sorted((path.stat().st_mtime, path) for path in self.root.glob("steps/*/output-*"))
        sizes = {path: sum(file.stat().st_size for file in _files_below(path)) for _, path in outputs}
        for last_use, path in outputs:
            if sum(sizes.values()) <= limit_bytes or time.time() - last_use < _IN_USE_S:
                break
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]


def local_root(uri: str) -> Path:
    """This machine's cache folder for a bucket's URI."""
    cache = Path(os.environ.get("SACPO_CACHE") or "~/.cache/sacpo").expanduser().absolute()
    return cache / content_id("store", {"uri": uri})


def folder_digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Digest of each file below a folder that matches a glob pattern, by its path relative to the folder."""
    return {str(path.relative_to(folder)): file_digest(path) for path in _files_below(folder, pattern)}


def size_and_mtime(path: Path) -> tuple[int, int]:
    """Size in bytes and time of last change in nanoseconds of a file; (-1, -1), which no file has, if there is none."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _files_below(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())
