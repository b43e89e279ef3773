"""How one update's examples are spread over workers, forward passes and accumulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Batch:
    """total = per_device x workers x accumulation.

    Attributes:
        total: Examples of an update.
        per_device: Examples in one forward pass of a worker.
        accumulation: Forward passes of a worker in an update.
    """

    total: int
    per_device: int
    accumulation: int

    @classmethod
    def of(cls, payload: dict[str, Any], resources: dict[str, Any], workers: int) -> Batch:
        """That of a `train` step: as many examples in a forward pass as divide the worker's share and are allowed."""
        total = payload["settings"]["batch_size"]
        if payload["method"] == "kto":  # the KL term is estimated over one forward batch of the whole group
            forward = payload["settings"]["kl_batch_size"]
        else:
            share = total // workers
            most = resources["per_device_batch"]
            forward = workers * max(n for n in range(1, share + 1) if share % n == 0 and n <= most)
        return cls(total, forward // workers, total // forward)
