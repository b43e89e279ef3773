"""Where a results folder is: on a path, or in a bucket with a working copy on this machine."""

from __future__ import annotations

from pathlib import Path

from sacpo.store.backends import Bucket, Folder, open_files
from sacpo.store.local_cache import local_root


class ResultsLocation:
    """A results folder's place.

    Args:
        uri: A path, or `s3://BUCKET/PREFIX` (`sacpo.store.step_store.backends.Bucket`).

    Raises:
        StoreError: it is neither.
    """

    def __init__(self, uri: str | Path) -> None:
        self.files: Folder | Bucket = open_files(str(uri), "--results")
        self.uri = self.files.uri
        self.folder = Path(self.uri) if isinstance(self.files, Folder) else local_root(self.uri) / "results"
        self._sent: dict[str, int] = {}

    @property
    def store(self) -> str:
        """URI of the store that belongs to it where no other is named."""
        return self.files.below("store")

    def fetch(self) -> Path:
        """The folder, with the files that the bucket has."""
        if isinstance(self.files, Bucket):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self.files.names(""):
                path = self.folder / name
                if "." in name and self.files.download(name, path):  # a file: folders' names here have no ending
                    self._sent[name] = path.stat().st_mtime_ns
        return self.folder

    def publish(self) -> None:
        """Have the files that changed in the bucket; the store and Ray's own folders stay where they are."""
        if isinstance(self.files, Bucket):
            for path in sorted(self.folder.iterdir()):
                changed = path.stat().st_mtime_ns
                if path.is_file() and not path.name.startswith(".") and self._sent.get(path.name) != changed:
                    self.files.upload(path, path.name)
                    self._sent[path.name] = changed
