"""Small files under one root, a folder's or a bucket's, behind the same few operations.

Keys have slashes and no leading one. Both kinds give what `sacpo.store.step_store` builds on: a reader sees a file whole or not at
all, and of several that create the same file exactly one is told that it did.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs

from sacpo.errors import StoreError

PATIENCE_S = 180.0  # how long a bucket that has answered before is waited for
_AT_FIRST_S = 5.0  # the same of one that has not: it may be misspelt
_OPTIONS = ("endpoint_override", "region", "scheme")  # of an s3:// URI, under the names that pyarrow gives them too

T = TypeVar("T")


class Folder:
    """Files on a local path or a shared mount."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, str(root)

    def below(self, name: str) -> str:
        """URI of a folder in this one."""
        return str(self.root / name)

    def read(self, key: str) -> bytes | None:
        """A file's content; none if it is not there."""
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, key: str, content: bytes) -> None:
        """Replace a file, or make it."""
        with self._beside(self.root / key, content) as temporary:
            os.replace(temporary, self.root / key)

    def create(self, key: str, content: bytes) -> bool:
        """Make a file with its whole content, unless it is there: link() is atomic and refuses on NFS too."""
        with self._beside(self.root / key, content) as temporary:
            try:
                os.link(temporary, self.root / key)
            except FileExistsError:
                return False
        return True

    @contextlib.contextmanager
    def _beside(self, path: Path, content: bytes) -> Any:
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

    def names(self, folder: str) -> list[str]:
        """What a folder holds, sorted; half-written files left out."""
        try:
            return sorted(name for name in os.listdir(self.root / folder) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def age(self, key: str) -> float | None:
        """Seconds since a file was last written, by this host's clock; none if it is not there."""
        try:
            return time.time() - (self.root / key).stat().st_mtime
        except FileNotFoundError:
            return None

    def move(self, key: str, new: str) -> bool:
        """Rename a file; whether it was there."""
        try:
            os.rename(self.root / key, self.root / new)
        except FileNotFoundError:
            return False
        return True

    def remove(self, key: str) -> None:
        """Remove a file, or a folder with all that it holds."""
        path = self.root / key
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class Bucket:
    """Files in a bucket of S3, or of a service that speaks as it does and knows `If-None-Match`.

    Args:
        uri: `s3://BUCKET/PREFIX`, and after a `?` any of endpoint_override (a URL), scheme and region, as pyarrow
            writes them. Keys come from where boto3 looks for them: environment, instance role, ~/.aws.
        known: Whether it is known to be there.

    Raises:
        StoreError: the URI names no bucket, or an option that is not known.
    """

    def __init__(self, uri: str, known: bool = False) -> None:
        self.uri, self._known = uri, known
        place, _, query = uri.partition("?")
        self.base = place.removeprefix("s3://").rstrip("/")
        options = parse_qs(query, keep_blank_values=True)
        unknown = sorted(options.keys() - set(_OPTIONS))
        if not self.base or unknown:
            problem = f"unknown option {', '.join(unknown)}" if unknown else "no bucket is named"
            raise StoreError(
                f"{uri}: {problem}; write s3://BUCKET/PREFIX, with ?{'=...&'.join(_OPTIONS)}=... if needed"
            )
        self._options = {name: values[-1] for name, values in options.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.uri, self._known)  # connections belong to one process

    @cached_property
    def _fs(self) -> Any:
        """Knows conditional writes, but takes half a second of a processor to be there: not for workers."""
        from s3fs import S3FileSystem

        region = {"region_name": self._options["region"]} if "region" in self._options else {}
        return S3FileSystem(
            endpoint_url=self._endpoint(), client_kwargs=region, use_listings_cache=False, skip_instance_cache=True
        )

    @cached_property
    def _quick(self) -> Any:
        """Writes a small file with one request, made where the file is closed."""
        return self.filesystem(allow_delayed_open=True)

    def filesystem(self, **options: Any) -> Any:
        """A pyarrow file system, for libraries that write folders themselves."""
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region

        endpoint, region = self._endpoint(), self._options.get("region")
        if endpoint is None and region is None:
            region = self._patiently(lambda: resolve_s3_region(self.base.partition("/")[0]))
        return S3FileSystem(
            endpoint_override=endpoint,
            region=region,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=15),
            **options,
        )

    def _endpoint(self) -> str | None:
        endpoint = self._options.get("endpoint_override")
        return endpoint if not endpoint or "://" in endpoint else f"{self._options.get('scheme', 'https')}://{endpoint}"

    def below(self, name: str) -> str:
        """URI of a folder in this one."""
        _, separator, query = self.uri.partition("?")
        return f"s3://{self.base}/{name}{separator}{query}"

    def read(self, key: str) -> bytes | None:
        """An object's content; none if it is not there."""
        try:
            # In one part: s3fs would ask for the size first, and list what is below where nothing is there.
            content: bytes = self._patiently(lambda: self._fs.cat_file(self.path(key), max_concurrency=1))
        except FileNotFoundError:
            return None
        return content

    def write(self, key: str, content: bytes) -> None:
        """Replace an object, or make it."""
        self._put(lambda: self._fs.pipe_file(self.path(key), content))

    def create(self, key: str, content: bytes) -> bool:
        """Make an object unless it is there: a conditional write.

        An attempt whose answer was lost finds its own object at the next: what is written must tell its writer.
        """
        try:
            self._put(lambda: self._fs.pipe_file(self.path(key), content, mode="create"))
        except FileExistsError:
            return self.read(key) == content
        return True

    def upload(self, path: Path, key: str) -> None:
        """Write a file, in parts where it is large."""

        def send() -> None:  # not by pyarrow's copy_files, which tells nobody that closing failed
            with path.open("rb") as source, self._quick.open_output_stream(self.path(key)) as target:
                shutil.copyfileobj(source, target, 2**22)

        self._put(send)

    def download(self, key: str, path: Path) -> bool:
        """Read an object into a file, which is whole or as it was; whether the object was there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self._patiently(lambda: self._fs.get_file(self.path(key), str(part)))
        except FileNotFoundError:
            return False
        os.replace(part, path)
        return True

    def names(self, folder: str) -> list[str]:
        """The next parts of the keys below a folder, sorted."""
        try:
            found = self._patiently(lambda: self._fs.ls(self.path(folder), detail=False))
        except FileNotFoundError:
            return []
        return sorted({name.rstrip("/").rpartition("/")[2] for name in found})

    def age(self, key: str) -> float | None:
        """Seconds from the service's time of the last write to this host's now; none if it is not there."""
        try:
            return time.time() - float(self._patiently(lambda: self._fs.modified(self.path(key))).timestamp())
        except FileNotFoundError:
            return None

    def move(self, key: str, new: str) -> bool:
        """Rename an object, in two steps; whether it was there."""
        content = self.read(key)
        if content is None:
            return False
        self.write(new, content)
        self.remove(key)
        return True

    def remove(self, key: str) -> None:
        """Remove an object, or all objects below a folder."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently(lambda: self._fs.rm(self.path(key), recursive=True))

    def path(self, key: str) -> str:
        """BUCKET/KEY, as file systems want it."""
        return f"{self.base}/{key}" if key else self.base

    def _put(self, write: Callable[[], None]) -> None:
        try:
            self._patiently(write)
        except FileNotFoundError:
            bucket = self.base.partition("/")[0]
            raise StoreError(f"{self.uri}: there is no bucket {bucket}; make it first, or name another") from None

    def _patiently(self, call: Callable[[], T]) -> T:
        """Call again while the service does not answer, or says that it is busy."""
        started, pause = time.monotonic(), 0.5
        while True:
            try:
                answer = call()
                self._known = True
                return answer
            except (FileNotFoundError, FileExistsError):
                self._known = True
                raise
            except Exception as error:
                if not _passes(error) or time.monotonic() - started > (PATIENCE_S if self._known else _AT_FIRST_S):
                    raise StoreError(f"{self.uri} cannot be reached: {_advice(error)}") from error
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def open_files(uri: str, option: str) -> Folder | Bucket:
    """What is at a path or URI.

    Args:
        uri: As it was given.
        option: Where, for what is said of it.

    Raises:
        StoreError: it is neither a path nor `s3://BUCKET/PREFIX`.
    """
    scheme, separator, _ = uri.partition("://")
    if separator and scheme == "s3":
        return Bucket(uri)
    if separator and scheme != "file":
        raise StoreError(
            f"{option} {uri}: {scheme}:// is not supported; give a path, local or on a shared mount, or s3://BUCKET/PREFIX"
        )
    return Folder(Path(uri.removeprefix("file://")).absolute())


def check(files: Folder | Bucket) -> None:
    """Raises StoreError where this process cannot write."""
    key, content = f".probe-{uuid.uuid4().hex}", uuid.uuid4().bytes
    if not files.create(key, content) or files.create(key, b"") or files.read(key) != content:
        raise StoreError(f"{files.uri} does not keep what is written, or knows no conditional writes")
    files.remove(key)


def _passes(error: Exception) -> bool:
    """Whether an error may pass by itself."""
    import aiohttp
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError

    if isinstance(error, PermissionError) or re.search("ACCESS_DENIED|NO_SUCH_BUCKET", str(error)):  # pyarrow's words
        return False
    return isinstance(error, OSError | NoConnection | HTTPClientError | aiohttp.ClientError | TimeoutError)


def _advice(error: Exception) -> str:
    reason = str(error).strip() or type(error).__name__
    if isinstance(error, PermissionError) or "credentials" in reason.lower():
        return f"{reason}; give keys that may read and write there (AWS_ACCESS_KEY_ID and so on, or an instance role)"
    return f"{reason}; the same command goes on when it can"
