"""Small files under one root, a folder or a prefix of a bucket, with the same operations for both.

Keys are relative paths with slashes, such as `steps/ID/record.json`. Both backends guarantee two properties that
`sacpo.store.step_store` relies on: a reader sees a whole file or none, and if several writers create the same file,
exactly one of them succeeds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qs

from sacpo.errors import StoreError
from sacpo.hashing import file_digest
from sacpo.store.s3_errors import is_transient, reason_and_way_out

PATIENCE_S = 180.0
"""Seconds for which a request to a bucket is repeated, once the bucket has answered a request of this process."""
FIRST_CONTACT_PATIENCE_S = 5.0
"""The same while the bucket has never answered: its URI may be misspelt, so the user should hear of it soon."""
_OPTIONS = ("endpoint_override", "region", "scheme")  # options of an s3:// URI; pyarrow uses the same names

T = TypeVar("T")


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


class S3Backend:
    """Objects under a prefix of an S3 bucket, or of a compatible service that supports `If-None-Match`.

    A request that fails for a transient reason is repeated for `PATIENCE_S` seconds. Afterwards, or if the reason is
    not transient, every method raises StoreError.

    Args:
        uri: `s3://BUCKET/PREFIX`, optionally with a query of `endpoint_override` (a URL), `scheme` and `region`, in the
            form of pyarrow's URIs. Credentials are taken from boto3's sources: environment, instance role, ~/.aws.
        has_answered: Whether the bucket has answered a request before.

    Raises:
        StoreError: the URI names no bucket, or an unknown option.
    """

    def __init__(self, uri: str, has_answered: bool = False) -> None:
        self.uri, self._has_answered = uri, has_answered
        path, _, query = uri.partition("?")
        self.base = path.removeprefix("s3://").rstrip("/")
        options = parse_qs(query, keep_blank_values=True)
        unknown_options = sorted(options.keys() - set(_OPTIONS))
        if not self.base or unknown_options:
            problem = f"unknown option {', '.join(unknown_options)}" if unknown_options else "no bucket is named"
            raise StoreError(
                f"{uri}: {problem}; write s3://BUCKET/PREFIX, with ?{'=...&'.join(_OPTIONS)}=... if needed"
            )
        self._options = {name: values[-1] for name, values in options.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled backend carries no connections: they belong to one process.
        return type(self), (self.uri, self._has_answered)

    @cached_property
    def _s3fs(self) -> Any:
        """The s3fs file system, which supports conditional writes.

        Its import and start take half a second of CPU time, so `upload` and `filesystem`, which workers use, do without
        it.
        """
        from s3fs import S3FileSystem

        region = {"region_name": self._options["region"]} if "region" in self._options else {}
        return S3FileSystem(
            endpoint_url=self._endpoint(), client_kwargs=region, use_listings_cache=False, skip_instance_cache=True
        )

    @cached_property
    def _single_request_filesystem(self) -> Any:
        """A pyarrow file system that writes a small file with one request, sent when the file is closed."""
        return self.filesystem(allow_delayed_open=True)

    def filesystem(self, **options: Any) -> Any:
        """A pyarrow file system, for libraries that write folders themselves.

        Args:
            options: Further arguments of `pyarrow.fs.S3FileSystem`.
        """
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

        endpoint, region = self._endpoint(), self._options.get("region")
        if endpoint is None and region is None:
            region = self._retry(lambda: resolve_s3_region(self._bucket))
        return S3FileSystem(
            endpoint_override=endpoint,
            region=region,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=15),
            **options,
        )

    def _endpoint(self) -> str | None:
        endpoint = self._options.get("endpoint_override")
        return endpoint if not endpoint or "://" in endpoint else f"{self._options.get('scheme', 'https')}://{endpoint}"

    @property
    def _bucket(self) -> str:
        return self.base.partition("/")[0]

    def child_uri(self, name: str) -> str:
        """URI of a prefix below this one, with the same options."""
        _, separator, query = self.uri.partition("?")
        return f"s3://{self.base}/{name}{separator}{query}"

    def read(self, key: str) -> bytes | None:
        """Content of an object; None if it does not exist."""
        try:
            # max_concurrency=1 makes s3fs send one GET. Otherwise it asks for the size first, and lists the keys below
            # a key that does not exist.
            content: bytes = self._retry(lambda: self._s3fs.cat_file(self.path(key), max_concurrency=1))
        except FileNotFoundError:
            return None
        return content

    def write(self, key: str, content: bytes) -> None:
        """Create or replace an object."""
        self._put(lambda: self._s3fs.pipe_file(self.path(key), content))

    def create(self, key: str, content: bytes) -> bool:
        """Create an object by a conditional write; returns False, and changes nothing, if it exists.

        If the answer to a successful request is lost, the repeated request finds the object of the first one. The
        content is compared to detect this, so every writer must write content that no other writer writes.
        """
        try:
            self._put(lambda: self._s3fs.pipe_file(self.path(key), content, mode="create"))
        except FileExistsError:
            return self.read(key) == content
        return True

    def upload(self, path: Path, key: str) -> None:
        """Write a local file to an object, in several parts if it is large."""

        def copy() -> None:
            # pyarrow's copy_files is no alternative: it hides errors of closing the target, which sends the last part.
            with (
                path.open("rb") as source,
                self._single_request_filesystem.open_output_stream(self.path(key)) as target,
            ):
                shutil.copyfileobj(source, target, 2**22)

        self._put(copy)

    def download(self, key: str, path: Path) -> bool:
        """Copy an object to a local file, atomically; returns False, and changes nothing, if there is no object."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self._retry(lambda: self._s3fs.get_file(self.path(key), str(temporary)))
        except FileNotFoundError:
            return False
        os.replace(temporary, path)
        return True

    def list_names(self, folder: str) -> list[str]:
        """Names directly below a prefix (the next part of each key), sorted."""
        try:
            paths = self._retry(lambda: self._s3fs.ls(self.path(folder), detail=False))
        except FileNotFoundError:
            return []
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})

    def files_below(self, folder: str = "") -> dict[str, StoredFile]:
        """All objects below a prefix, by key."""
        objects = self._retry(lambda: self._s3fs.find(self.path(folder), detail=True))
        prefix = len(self.base) + 1
        return {
            path[prefix:]: StoredFile(entry["size"], entry["LastModified"].timestamp())
            for path, entry in objects.items()
        }

    def digest(self, key: str) -> str | None:
        """SHA-256 (hex) of an object, which is read from the service; None if it does not exist."""

        def read() -> str:
            with self._s3fs.open(self.path(key), "rb") as source:
                return hashlib.file_digest(source, "sha256").hexdigest()

        try:
            return self._retry(read)
        except FileNotFoundError:
            return None

    def age(self, key: str) -> float | None:
        """Seconds since an object was last written; None if it does not exist.

        The difference between the service's time of the write and this host's clock, which may disagree.
        """
        try:
            return time.time() - float(self._retry(lambda: self._s3fs.modified(self.path(key))).timestamp())
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
        with contextlib.suppress(FileNotFoundError):
            self._retry(lambda: self._s3fs.rm(self.path(key), recursive=True))

    def path(self, key: str) -> str:
        """`BUCKET/KEY`, the form that file systems expect."""
        return f"{self.base}/{key}" if key else self.base

    def _put(self, write: Callable[[], None]) -> None:
        try:
            self._retry(write)
        except FileNotFoundError:
            raise StoreError(
                f"{self.uri}: there is no bucket {self._bucket}; create it first, or name another"
            ) from None

    def _retry(self, request: Callable[[], T]) -> T:
        """Send a request; repeat it while the service is unreachable or busy.

        Raises:
            FileNotFoundError: the object or the bucket does not exist.
            FileExistsError: the object exists, and the request must create it.
            StoreError: the request failed for good, or for longer than the patience allows.
        """
        started, pause = time.monotonic(), 0.5
        while True:
            try:
                answer = request()
                self._has_answered = True
                return answer
            except (FileNotFoundError, FileExistsError):
                self._has_answered = True
                raise
            except Exception as error:
                patience = PATIENCE_S if self._has_answered else FIRST_CONTACT_PATIENCE_S
                if not is_transient(error) or time.monotonic() - started > patience:
                    raise StoreError(f"{self.uri} cannot be reached: {reason_and_way_out(error)}") from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def open_backend(uri: str, option: str) -> LocalBackend | S3Backend:
    """The backend for a path or URI.

    Args:
        uri: The path or URI as the user gave it.
        option: The option by which the user gave it, for error messages.

    Raises:
        StoreError: the URI is neither a path nor `s3://BUCKET/PREFIX`.
    """
    scheme, separator, _ = uri.partition("://")
    if separator and scheme == "s3":
        return S3Backend(uri)
    if separator and scheme != "file":
        raise StoreError(
            f"{option} {uri}: {scheme}:// is not supported; give a path, local or on a shared mount, or s3://BUCKET/PREFIX"
        )
    return LocalBackend(Path(uri.removeprefix("file://")).absolute())


def check_writable(backend: LocalBackend | S3Backend) -> None:
    """Create, read and remove a file, and check that a file cannot be created twice.

    Raises:
        StoreError: this process cannot write there, or the service ignores conditional writes.
    """
    key, content = f".probe-{uuid.uuid4().hex}", uuid.uuid4().bytes
    if not backend.create(key, content) or backend.create(key, b"") or backend.read(key) != content:
        raise StoreError(
            f"{backend.uri} does not return the written content, or supports no conditional writes (If-None-Match); "
            "give a path, or a service that supports them"
        )
    backend.remove(key)
