"""Location of a results folder: a path, or a bucket with a working copy on this machine's disk."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from sacpo.store.backends import Backend, BucketBackend, LocalBackend, open_backend
from sacpo.store.local_cache import local_root

DEFAULT_RESULTS = Path("results")
"""Folder of the results folders of sweeps that name none."""


class ResultsLocation:
    """A results folder, at a path or in a bucket.

    Args:
        uri: A path, or the URI of a bucket (`sacpo.store.bucket_services`).

    Attributes:
        uri: Where the results are.
        folder: The folder on this machine; for a bucket, the working copy.

    Raises:
        StoreError: the URI is neither.
    """

    def __init__(self, uri: str | Path) -> None:
        self.files = open_backend(str(uri), "--results")
        self.uri = self.files.uri
        self.folder = Path(self.uri) if isinstance(self.files, LocalBackend) else local_root(self.uri) / "results"
        self._sent: dict[str, int] = {}

    @property
    def default_store(self) -> str:
        """URI of the store of a sweep that names no other."""
        return self.files.child_uri("store")

    def relative(self, store: str) -> str:
        """The store's path in the results folder, such as `store`; its URI if it does not lie inside.

        Raises:
            StoreError: the store's URI is neither a path nor the URI of a bucket.
        """
        path = path_inside(self.files, open_backend(store, "--store"))
        return store if path is None else path

    def resolve(self, store: str) -> str:
        """URI of a store that `relative` gave, from where the results folder is now."""
        return store if "://" in store or os.path.isabs(store) else self.files.child_uri(store)

    def fetch(self) -> Path:
        """The folder on this machine. A bucket's files are downloaded first."""
        if isinstance(self.files, BucketBackend):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self.files.list_names(""):
                path = self.folder / name
                if "." in name and self.files.download(name, path):  # files here have a suffix, folders have none
                    self._sent[name] = path.stat().st_mtime_ns
        return self.folder

    def publish(self) -> None:
        """Upload the files that changed to the bucket, if there is one. Folders (the store, Tune's) are left out."""
        if isinstance(self.files, BucketBackend):
            for path in sorted(self.folder.iterdir()):
                changed = path.stat().st_mtime_ns
                if path.is_file() and not path.name.startswith(".") and self._sent.get(path.name) != changed:
                    self.files.upload(path, path.name)
                    self._sent[path.name] = changed

    def remove(self, name: str) -> None:
        """Remove a file from the folder on this machine, and from the bucket if there is one."""
        (self.folder / name).unlink(missing_ok=True)
        if isinstance(self.files, BucketBackend):
            self.files.remove(name)
            self._sent.pop(name, None)


def path_inside(outer: Backend, inner: Backend) -> str | None:
    """Path of one location in another one, such as `store`; None if it does not lie inside."""
    if isinstance(outer, LocalBackend) and isinstance(inner, LocalBackend):
        outer_path, inner_path = (Path(os.path.realpath(files.uri)) for files in (outer, inner))
        return inner_path.relative_to(outer_path).as_posix() if inner_path.is_relative_to(outer_path) else None
    if isinstance(outer, BucketBackend) and isinstance(inner, BucketBackend):
        path = inner.address.path.removeprefix(f"{outer.address.path}/")
        is_inside = path != inner.address.path and outer.child_uri(path) == str(inner.address)
        return path if is_inside else None
    return None


def enclosing_uri(inner: Backend, path: str) -> str:
    """URI of the location in which `inner` has this path: the inverse of `path_inside`."""
    if isinstance(inner, LocalBackend):
        depth = len(Path(path).parts)
        return str(Path(inner.uri).parents[depth - 1] if depth else Path(inner.uri))
    address = inner.address
    return str(replace(address, path=address.path.removesuffix(f"/{path}")))
