"""Small files under a prefix of a bucket, through obstore (bindings of Rust's object_store)."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from sacpo.errors import StoreError
from sacpo.store.bucket_errors import is_transient, plain_text, problem
from sacpo.store.bucket_services import Address
from sacpo.store.local_backend import StoredFile

PATIENCE_S = 180.0
"""Seconds for which a request is repeated, once the bucket has answered a request of this process. Before that, its URI
may be misspelt, so the user hears of it after `bucket_services.FIRST_CONTACT_PATIENCE_S`."""
_PAUSE_S = 1.0  # between two repetitions, beside obstore's own
_PART_BYTES = 2**23  # of a file that is uploaded in parts; S3 takes at most 10,000 parts
_PARALLEL_PARTS = 2

T = TypeVar("T")


class BucketBackend:
    """Objects under a prefix of a bucket that supports conditional writes.

    A request that fails for a transient reason is repeated for `PATIENCE_S` seconds. Afterwards, or if the reason is
    not transient, every method raises StoreError. obstore repeats requests itself, but it cannot be interrupted
    meanwhile, and gives up on some errors that pass, so it repeats each for a few seconds only.

    Args:
        uri: `s3://BUCKET/PREFIX` and so on, optionally with a query of options (`sacpo.store.bucket_services`).
        has_answered: Whether the bucket has answered a request before.

    Raises:
        StoreError: the URI names no bucket, or an unknown option.
    """

    def __init__(self, uri: str, has_answered: bool = False) -> None:
        self.uri, self._has_answered = uri, has_answered
        self.address = Address.parse(uri)

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled backend carries no connections: they belong to one process.
        return type(self), (self.uri, self._has_answered)

    @cached_property
    def _objects(self) -> Any:
        """obstore's store of the prefix."""
        from obstore import store
        from obstore.exceptions import BaseError

        bucket, _, prefix = self.address.path.partition("/")
        opened = getattr(store, self.address.service.store_class)
        try:
            return opened(bucket, prefix=prefix or None, **self.address.arguments())
        except BaseError as error:
            raise StoreError(
                f"{self.uri} cannot be used: {plain_text(error)}; check the options of the URI and the credentials "
                f"({self.address.service.credentials})"
            ) from error

    def filesystem(self) -> Any:
        """A pyarrow file system of the service, for libraries that write folders themselves."""
        from sacpo.store.arrow_filesystem import arrow_filesystem

        return arrow_filesystem(self.address.scheme, self.address.arguments())

    def child_uri(self, name: str) -> str:
        """URI of a prefix below this one, with the same options."""
        return str(Address(self.address.scheme, self.path(name), self.address.query))

    def path(self, key: str) -> str:
        """`BUCKET/KEY`, the form that file systems expect."""
        return f"{self.address.path}/{key}" if key else self.address.path

    def location(self, key: str) -> str:
        """URI of an object without options, for people."""
        return f"{self.address.scheme}://{self.path(key)}"

    def read(self, key: str) -> bytes | None:
        """Content of an object; None if it does not exist."""
        try:
            return self._retry(lambda: bytes(self._objects.get(key).bytes()))
        except FileNotFoundError:
            return None

    def write(self, key: str, content: bytes) -> None:
        """Create or replace an object."""
        self._put(lambda: self._objects.put(key, content))

    def create(self, key: str, content: bytes) -> bool:
        """Create an object by a conditional write; returns False, and changes nothing, if it exists.

        If the answer to a successful request is lost, the repeated request finds the object of the first one. The
        content is compared to detect this, so every writer must write content that no other writer writes.
        """
        from obstore.exceptions import AlreadyExistsError

        def request() -> bool:
            try:
                self._objects.put(key, content, mode="create")
            except AlreadyExistsError as error:
                try:
                    return bytes(self._objects.get(key).bytes()) == content
                except FileNotFoundError:
                    raise error from None  # another conditional write is in progress, and may fail
            return True

        return self._put(request)

    def upload(self, path: Path, key: str) -> None:
        """Write a local file to an object, in several parts if it is large; readers see the whole file or none."""
        part_bytes = max(_PART_BYTES, path.stat().st_size // 9000)

        def put() -> None:
            self._objects.put(key, path, chunk_size=part_bytes, max_concurrency=_PARALLEL_PARTS)

        try:
            self._retry(put)
        except FileNotFoundError:
            # There is no bucket; or the answer that ended an upload in parts was lost, and the repeated request met no
            # such upload any more.
            self._put(put)

    def download(self, key: str, path: Path) -> bool:
        """Copy an object to a local file, atomically; returns False, and changes nothing, if there is no object."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")

        def copy() -> None:
            stream = self._objects.get(key).stream(min_chunk_size=2**22)
            with temporary.open("wb") as target:
                target.writelines(stream)

        try:
            self._retry(copy)
        except FileNotFoundError:
            return False
        os.replace(temporary, path)
        return True

    def list_names(self, folder: str) -> list[str]:
        """Names directly below a prefix (the next part of each key), sorted."""
        below = self._retry(lambda: self._objects.list_with_delimiter(folder or None))
        paths = [*below["common_prefixes"], *(entry["path"] for entry in below["objects"])]
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})

    def files_below(self, folder: str = "") -> dict[str, StoredFile]:
        """All objects below a prefix, by key."""
        objects = self._retry(lambda: self._objects.list(folder or None).collect())
        return {entry["path"]: StoredFile(entry["size"], entry["last_modified"].timestamp()) for entry in objects}

    def digest(self, key: str) -> str | None:
        """SHA-256 (hex) of an object, which is read from the service; None if it does not exist."""

        def read() -> str:
            sha256 = hashlib.sha256()
            for chunk in self._objects.get(key).stream(min_chunk_size=2**22):
                sha256.update(chunk)
            return sha256.hexdigest()

        try:
            return self._retry(read)
        except FileNotFoundError:
            return None

    def age(self, key: str) -> float | None:
        """Seconds since an object was last written; None if it does not exist.

        The difference between the service's time of the write and this host's clock, which may disagree.
        """
        try:
            return time.time() - float(self._retry(lambda: self._objects.head(key))["last_modified"].timestamp())
        except FileNotFoundError:
            return None

    def move(self, key: str, new_key: str) -> bool:
        """Rename an object by a copy and a removal, not atomically; returns False if it does not exist."""
        content = self.read(key)
        if content is None:
            return False
        self.write(new_key, content)
        self.remove(key)
        return True

    def remove(self, key: str) -> None:
        """Remove an object, or all objects below a prefix."""
        keys = list(self.files_below(key)) or [key]
        try:
            self._retry(lambda: self._objects.delete(keys))
        except FileNotFoundError:  # another process removes them too
            for one in keys:
                with contextlib.suppress(FileNotFoundError):
                    self._retry(functools.partial(self._objects.delete, one))

    def _put(self, write: Callable[[], T]) -> T:
        try:
            return self._retry(write)
        except FileNotFoundError:
            bucket = self.address.bucket
            raise StoreError(f"{self.uri}: there is no bucket {bucket}; create it first, or name another") from None

    def _retry(self, request: Callable[[], T]) -> T:
        """Send a request; repeat it while the service is unreachable or busy.

        Raises:
            FileNotFoundError: the object or the bucket does not exist.
            StoreError: the request failed for good, or for longer than the patience allows.
        """
        from obstore.exceptions import BaseError

        started = time.monotonic()
        while True:
            try:
                answer = request()
                self._has_answered = True
                return answer
            except FileNotFoundError:
                self._has_answered = True
                raise
            except BaseError as error:
                patience = PATIENCE_S if self._has_answered else 0.0
                if not is_transient(error) or time.monotonic() - started > patience:
                    raise StoreError(f"{self.uri} {problem(error, self.address.service.credentials)}") from error
            time.sleep(_PAUSE_S)
