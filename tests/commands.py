"""The project's commands as a user runs them: in processes of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.spaces import ROOT


def write_space(data: dict[str, Any], folder: Path) -> Path:
    """A space file with this content."""
    path = folder / f"{data['name']}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def arguments(space: Path, results: str | Path, *more: str) -> list[str]:
    """The command line of a sweep."""
    return [sys.executable, "-m", "sacpo.sweep", str(space), "--results", str(results), *more]


def sweep(space: Path, results: Path, *more: str, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run a sweep to its end."""
    return subprocess.run(
        arguments(space, results, *more), capture_output=True, text=True, cwd=ROOT, timeout=timeout, check=False
    )


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of the package's modules to its end."""
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )


def free_port() -> int:
    """A port of the loopback interface on which nobody listens, for a process that cannot find one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
