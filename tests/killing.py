"""Processes and checkpoints for tests that kill in the middle of a stage."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil

from sacpo.cluster.checkpoints import LATEST


def train_workers() -> list[int]:
    """Process ids of the training workers below this process."""
    children = psutil.Process().children(recursive=True)
    return [p.pid for p in children if "RayTrainWorker" in " ".join(p.cmdline())]


def known_checkpoints(folder: Path) -> str:
    """The file that names a stage's latest checkpoint; empty before the first one.

    Args:
        folder: The folder of the stage's checkpoints.
    """
    for path in folder.glob(f"*/{LATEST}"):
        with contextlib.suppress(OSError):  # the stage ends at this moment
            return path.read_text()
    return ""
