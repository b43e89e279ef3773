"""Processes and checkpoints for tests that kill in the middle of a stage."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

SNAPSHOT = "checkpoint_manager_snapshot.json"


def train_workers() -> list[int]:
    """Process ids of the training workers below this process."""
    children = psutil.Process().children(recursive=True)
    return [p.pid for p in children if "RayTrainWorker" in " ".join(p.cmdline())]


def known_checkpoints(folder: Path) -> str:
    """The checkpoint list of a stage's controller, from which a group restarts; empty before the first checkpoint.

    Args:
        folder: The folder of the stage's checkpoints.
    """
    for path in folder.glob(f"*/{SNAPSHOT}"):
        try:
            text = path.read_text()
            if json.loads(text)["checkpoint_results"]:
                return text
        except (OSError, ValueError):
            pass  # the file is being written, or the stage ends at this moment
    return ""
