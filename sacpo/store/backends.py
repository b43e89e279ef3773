"""Small files under one root, a folder or a prefix of a bucket, with the same operations for both.

Keys are relative paths with slashes, such as `steps/ID/record.json`. Both backends guarantee two properties that
`sacpo.store.step_store` relies on: a reader sees a whole file or none, and if several writers create the same file,
exactly one of them succeeds.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from sacpo.errors import StoreError
from sacpo.store.bucket_backend import BucketBackend
from sacpo.store.bucket_services import SERVICES
from sacpo.store.local_backend import LocalBackend, StoredFile

__all__ = ["Backend", "BucketBackend", "LocalBackend", "StoredFile", "check_writable", "open_backend"]

Backend = LocalBackend | BucketBackend


def open_backend(uri: str, option: str) -> Backend:
    """The backend for a path or URI.

    Args:
        uri: The path or URI as the user gave it.
        option: The option by which the user gave it, for error messages.

    Raises:
        StoreError: the URI is neither a path nor the URI of a bucket.
    """
    scheme, separator, _ = uri.partition("://")
    if separator and scheme in SERVICES:
        return BucketBackend(uri)
    if separator and scheme != "file":
        forms = ", ".join(service.form for service in SERVICES.values())
        raise StoreError(
            f"{option} {uri}: {scheme}:// is not supported; give a path, local or on a shared mount, or {forms}"
        )
    return LocalBackend(Path(uri.removeprefix("file://")).absolute())


def check_writable(backend: Backend) -> None:
    """Create, list, read and remove a file, and check that a file cannot be created twice.

    Raises:
        StoreError: this process lacks a right there, or the service ignores conditional writes.
    """
    folder = f".probe-{uuid.uuid4().hex}"
    key, content = f"{folder}/file", uuid.uuid4().bytes
    created = backend.create(key, content) and not backend.create(key, b"")
    if not created or backend.list_names(folder) != ["file"] or backend.read(key) != content:
        raise StoreError(
            f"{backend.uri} does not return the written content, or supports no conditional writes (If-None-Match); "
            "give a path, or a service that supports them"
        )
    backend.remove(folder)
