"""A bucket as a file system of pyarrow, for libraries that write folders themselves: Ray Train."""

from __future__ import annotations

import contextlib
from typing import Any

from obstore.fsspec import BufferedFile, FsspecStore
from pyarrow.fs import FSSpecHandler, PyFileSystem


class _File(BufferedFile):
    def write(self, data: Any) -> int:
        # obstore takes unsigned bytes; those of pyarrow's buffers are signed.
        unsigned: Any = memoryview(data).cast("B")
        return super().write(unsigned)


class _Files(FsspecStore):
    async def _rm_file(self, path: str, **options: Any) -> None:
        with contextlib.suppress(FileNotFoundError):  # fsspec removes a folder like a file; Azure has no such object
            await super()._rm_file(path, **options)

    def _open(self, path: str, mode: Any = "rb", *_: Any, **options: Any) -> BufferedFile:
        return _File(self, path, mode, **options)


def arrow_filesystem(scheme: Any, arguments: dict[str, Any]) -> Any:
    """The file system of a service, whose paths begin with the bucket's name.

    Args:
        scheme: Scheme of the service's URIs.
        arguments: `bucket_services.Address.arguments`.
    """
    return PyFileSystem(FSSpecHandler(_Files(scheme, **arguments)))
