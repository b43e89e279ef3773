"""What makes two steps the same step: a hash of everything that can change the output, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sacpo.errors import DataError


def canonical(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, JSON types only.

    Raises:
        TypeError: a value has no stable JSON form.
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_id(kind: str, payload: dict[str, Any]) -> str:
    """The step's id: its kind and the first 20 hex digits of the SHA-256 of its canonical payload."""
    return f"{kind}-{hashlib.sha256(canonical(payload).encode()).hexdigest()[:20]}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's file names and digests."""
    if path.is_dir():
        parts = [
            f"{inner.relative_to(path)} {file_digest(inner)}" for inner in sorted(path.rglob("*")) if inner.is_file()
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def source_identity(path: str, revision: str | None) -> dict[str, str]:
    """A local path by its content; a hub id by its revision."""
    if Path(path).exists():
        return {"sha256": file_digest(Path(path))}
    return {"hub": path, "revision": str(revision)}
