"""Small files under a folder, on a local disk or on a shared mount."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sacpo.errors import StoreError
from sacpo.hashing import file_digest


class StoredFile(NamedTuple):
    """Size of a file in bytes, and the time of its last change in seconds since the epoch."""

    size: int
    modified: float


class LocalBackend:
    """Files in a folder, on a local disk or on a shared mount."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, str(root)

    def child_uri(self, name: str) -> str:
        """Path of a folder inside this one."""
        return str(self.root / name)

    def location(self, key: str) -> str:
        """Path of a file, for people."""
        return str(self.root / key)

    def read(self, key: str) -> bytes | None:
        """Content of a file; None if it does not exist."""
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, key: str, content: bytes) -> None:
        """Create or replace a file.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._temporary_file(self.root / key, content) as temporary:
            os.replace(temporary, self.root / key)

    def create(self, key: str, content: bytes) -> bool:
        """Create a file with its whole content; returns False, and changes nothing, if it exists.

        `link()` is atomic and refuses an existing name, on NFS too.

        Raises:
            StoreError: the file cannot be written.
        """
        with self._temporary_file(self.root / key, content) as temporary:
            try:
                os.link(temporary, self.root / key)
            except FileExistsError:
                return False
        return True

    @contextlib.contextmanager
    def _temporary_file(self, path: Path, content: bytes) -> Iterator[Path]:
        """A file with this content in the folder of `path`, removed afterwards."""
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            yield temporary
        except OSError as error:
            raise StoreError(f"{self.uri} cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def upload(self, path: Path, key: str) -> None:
        """Copy a file of this machine here, atomically."""
        _copy(path, self.root / key)

    def download(self, key: str, path: Path) -> bool:
        """Copy a file to another folder of this machine, atomically; returns False if it does not exist."""
        try:
            _copy(self.root / key, path)
        except FileNotFoundError:
            return False
        return True

    def list_names(self, folder: str) -> list[str]:
        """Names of the files and folders in a folder, sorted. Temporary files are left out."""
        try:
            return sorted(name for name in os.listdir(self.root / folder) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def files_below(self, folder: str = "") -> dict[str, StoredFile]:
        """All files below a folder, by key. Temporary files are left out."""
        files = {}
        for parent, _, names in os.walk(self.root / folder):
            for name in names:
                path = Path(parent, name)
                with contextlib.suppress(FileNotFoundError):  # removed a moment ago
                    status = path.stat()
                    if not name.startswith("."):
                        files[str(path.relative_to(self.root))] = StoredFile(status.st_size, status.st_mtime)
        return files

    def digest(self, key: str) -> str | None:
        """SHA-256 (hex) of a file; None if it does not exist."""
        path = self.root / key
        return file_digest(path) if path.is_file() else None

    def age(self, key: str) -> float | None:
        """Seconds since a file was last written, by this host's clock; None if it does not exist."""
        try:
            return time.time() - (self.root / key).stat().st_mtime
        except FileNotFoundError:
            return None

    def move(self, key: str, new_key: str) -> bool:
        """Rename a file; returns False if it does not exist."""
        try:
            os.rename(self.root / key, self.root / new_key)
        except FileNotFoundError:
            return False
        return True

    def remove(self, key: str) -> None:
        """Remove a file, or a folder with its content."""
        path = self.root / key
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
