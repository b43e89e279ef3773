"""Steps' outputs of a bucket on this machine's disk: fetched once, digests checked, the least recently used dropped.

Under `$SACPO_CACHE` (`~/.cache/sacpo`; the same path on every machine of a cluster), as the store's keys lay them out.
A file is never taken for what it should be: its digest decides, so an output that was cut off is fetched anew.
`$SACPO_CACHE_GB` (50) bounds what is kept; what was used in the last quarter of an hour is kept in any case.
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
from sacpo.planning.identity import content_id, file_digest
from sacpo.store.backends import Bucket

_IN_USE_S = 900.0
_AT_ONCE = 4  # files on their way at the same time; each may itself go in parts


class Cache:
    """The local side of a store in a bucket.

    Args:
        files: The bucket.
    """

    def __init__(self, files: Bucket) -> None:
        self.files = files
        self.root = local_root(files.uri)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.files,)  # each machine's own

    def fetch(self, key: str, digests: dict[str, str]) -> str | None:
        """Have a folder's files here, each with its digest; what is wrong with what the bucket has, or none."""
        folder = self.root / key
        with self._alone(key):
            known = self._known(key)
            missing = [n for n, digest in digests.items() if known.get(n) != [*stamp(folder / n), digest]]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                found = dict(zip(missing, pool.map(lambda n: self._get(key, n, digests[n]), missing), strict=True))
            for name, problem in found.items():
                if problem is not None:
                    return f"{name} {problem}"
            if missing:
                self._know(key, digests)
            os.utime(folder)
        if missing:
            self._trim()
        return None

    def _get(self, key: str, name: str, digest: str) -> str | None:
        path = self.root / key / name
        if path.is_file() and file_digest(path) == digest:
            return None
        if not self.files.download(f"{key}/{name}", path):
            return "is missing"
        return None if file_digest(path) == digest else "does not match its digest"

    def keep(self, key: str, pattern: str) -> dict[str, str]:
        """Write the files of a folder here to the bucket; their digests by name."""
        folder = self.root / key
        digests = folder_digests(folder, pattern)
        with self._alone(key), ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: self.files.upload(folder / name, f"{key}/{name}"), digests))
            self._know(key, digests)
        self._trim()
        return digests

    def send(self, folder: Path, pattern: str = "*") -> None:
        """Write the files below a folder here to the bucket as they are now."""
        for path in _within(folder, pattern):
            self.files.upload(path, str(path.relative_to(self.root)))

    def receive(self, folder: Path) -> None:
        """Have the bucket's files here that are one level below a folder and not here."""
        key = str(folder.relative_to(self.root))
        books = self.files.names(key)
        for name in [f"{book}/{name}" for book in books for name in self.files.names(f"{key}/{book}")]:
            if not (folder / name).exists():
                self.files.download(f"{key}/{name}", folder / name)

    def drop(self, key: str) -> None:
        """Forget a folder."""
        shutil.rmtree(self.root / key, ignore_errors=True)

    # Beside a folder: whose turn it is, and which stamps its files had when their digests were last right.

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        (self.root / key).mkdir(parents=True, exist_ok=True)
        with self._beside(key, "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _beside(self, key: str, what: str) -> Path:
        folder = self.root / key
        return folder.with_name(f".{folder.name}.{what}")

    def _known(self, key: str) -> dict[str, list[object]]:
        try:
            found: dict[str, list[object]] = json.loads(self._beside(key, "known").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found

    def _know(self, key: str, digests: dict[str, str]) -> None:
        folder = self.root / key
        known = {name: [*stamp(folder / name), digest] for name, digest in digests.items()}
        self._beside(key, "known").write_text(json.dumps(known))

    def _trim(self) -> None:
        text = os.environ.get("SACPO_CACHE_GB") or "50"
        try:
            room = float(text) * 1e9
        except ValueError:
            raise StoreError(f"SACPO_CACHE_GB: {text!r} is no number; give gigabytes, such as 50") from None
        kept = sorted((path.stat().st_mtime, path) for path in self.root.glob("steps/*/output-*"))
        sizes = {path: sum(found.stat().st_size for found in _within(path)) for _, path in kept}
        for used, path in kept:
            if sum(sizes.values()) <= room or time.time() - used < _IN_USE_S:
                break
            shutil.rmtree(path, ignore_errors=True)
            del sizes[path]


def local_root(uri: str) -> Path:
    """This machine's folder for what is at a URI."""
    home = Path(os.environ.get("SACPO_CACHE") or "~/.cache/sacpo").expanduser().absolute()
    return home / content_id("store", {"uri": uri})


def folder_digests(folder: Path, pattern: str = "*") -> dict[str, str]:
    """Digest of each file below a folder, by its path in it."""
    return {str(path.relative_to(folder)): file_digest(path) for path in _within(folder, pattern)}


def _within(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def stamp(path: Path) -> tuple[int, int]:
    """Size and time of change of a file; what no file has where there is none."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
