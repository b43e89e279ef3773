"""Hashes by which content is named: of JSON values (ids of steps, keys of ledgers) and of files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sacpo.errors import DataError


def canonical(value: Any) -> str:
    """The only JSON text of a value: keys sorted, no spaces, JSON types only.

    Raises:
        TypeError: a value has no stable JSON form.
        ValueError: a number is not finite.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_id(kind: str, payload: dict[str, Any]) -> str:
    """Id of a payload: its kind and the first 20 hex digits of the SHA-256 of its canonical JSON.

    Raises:
        TypeError: a value has no stable JSON form.
        ValueError: a number is not finite.
    """
    return f"{kind}-{hashlib.sha256(canonical(payload).encode()).hexdigest()[:20]}"


def digest(content: bytes) -> str:
    """SHA-256 (hex) of a content, as `file_digest` of a file with it."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; of a folder, the SHA-256 of its files' relative paths and digests.

    Raises:
        DataError: the file cannot be read.
    """
    if path.is_dir():
        files = sorted(inner for inner in path.rglob("*") if inner.is_file())
        lines = [f"{inner.relative_to(path)} {file_digest(inner)}" for inner in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
