"""What a test that kills in the middle of a stage looks for."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

SNAPSHOT = "checkpoint_manager_snapshot.json"


def train_workers() -> list[int]:
    """Process ids of the training workers below this process."""
    mine = psutil.Process().children(recursive=True)
    return [p.pid for p in mine if "RayTrainWorker" in " ".join(p.cmdline())]


def known(scratch: Path) -> str:
    """What a stage's controller knows of its checkpoints, from which a group restarts; nothing before there are any."""
    for path in scratch.glob(f"*/{SNAPSHOT}"):
        try:
            text = path.read_text()
            if json.loads(text)["checkpoint_results"]:
                return text
        except (OSError, ValueError):
            pass  # being written, or the stage ends, this instant
    return ""
