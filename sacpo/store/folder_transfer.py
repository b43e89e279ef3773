"""Copies of whole folders between this machine and a backend, several files at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sacpo.store.backends import Backend

PARALLEL_TRANSFERS = 4
"""Files that are sent at once; a large file is itself sent in parallel parts."""


def upload_folder(files: Backend, folder: Path, key: str) -> None:
    """Copy all files below a folder of this machine to a folder of the backend."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
        list(pool.map(lambda name: files.upload(folder / name, f"{key}/{name}"), names))


def download_folder(files: Backend, key: str, folder: Path) -> None:
    """Copy all files below a folder of the backend to a folder of this machine."""
    names = [path.removeprefix(f"{key}/") for path in files.files_below(key)]
    with ThreadPoolExecutor(PARALLEL_TRANSFERS) as pool:
        list(pool.map(lambda name: files.download(f"{key}/{name}", folder / name), names))
