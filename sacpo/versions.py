"""What a sweep ran on: installed versions, and the commit of this package."""

from __future__ import annotations

import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("sacpo", "ray", "torch", "transformers", "trl", "deepspeed", "datasets", "pandas", "accelerate")


def version(package: str) -> str:
    """A package's installed version, or that it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str | None:
    """The commit of the package's own repository, if it is in one."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
