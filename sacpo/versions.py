"""Installed versions of the packages that a sweep depends on, and the commit of this package."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ("sacpo", "ray", "torch", "transformers", "trl", "deepspeed", "datasets", "pandas", "accelerate")


def version(package: str) -> str:
    """The installed version of a package, or `not installed`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """The installed version of each of `PACKAGES`, and Python's."""
    return {package: version(package) for package in PACKAGES} | {"python": sys.version.split()[0]}


def commit() -> str | None:
    """The commit of the repository that tracks this file; None if there is none, as for an installed wheel."""
    file = Path(__file__)
    try:
        # A virtual environment may lie inside another repository, which does not track this file.
        _git("ls-files", "--error-unmatch", file.name, folder=file.parent)
        return _git("rev-parse", "HEAD", folder=file.parent)
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str, folder: Path) -> str:
    answer = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    return answer.stdout.strip()
