"""Resources of Ray that steps hold."""

from __future__ import annotations

from sacpo.spaces.space import Resources


def worker_resources(resources: Resources) -> dict[str, float]:
    """What one worker holds while it works, as Ray names it."""
    held: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        held["GPU"] = resources.gpus_per_worker
    return held
