"""What a training step did, counted by itself: tokens, padding, speed and memory of the updates that this run made."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

# Dense bfloat16 peaks of single accelerators in FLOP/s, from their makers' data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12}


class Counters:
    """Counts batches as a trainer takes them."""

    def __init__(self) -> None:
        self.tokens: Any = 0  # a tensor on accelerators: reading it at every step would wait for the device
        self.slots = 0
        self.first = self.last = 0.0
        self.updates_before: int | None = None

    def count(self, inputs: dict[str, Any], updates: int) -> None:
        """Add one forward batch; `updates` is the number of updates made before it."""
        if self.updates_before is None:
            self.updates_before, self.first = updates, time.monotonic()
        for name, mask in inputs.items():
            if name.endswith("attention_mask"):
                self.tokens = self.tokens + mask.sum()
                self.slots += mask.numel()

    def metrics(self, trainer: Any, batch_size: int) -> dict[str, Any]:
        """Figures of all workers together, over the updates that this run made (not those before a resume).

        `flops_per_second` is 6 x parameters x tokens, attention left out; `mfu` is its share of the accelerators' dense
        bfloat16 peak (`peak_flops`), where that is known.
        """
        if self.updates_before is None:
            return {}
        seconds = time.monotonic() - self.first
        accelerator = trainer.accelerator
        counted = torch.tensor([int(self.tokens), self.slots], dtype=torch.float64)
        totals = accelerator.reduce(counted.to(accelerator.device), reduction="sum").tolist()
        model = accelerator.unwrap_model(trainer.model)
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
        speed = 6 * parameters * totals[0] / seconds
        peak = _peak()
        found = {
            "training_seconds": seconds,
            "tokens": int(totals[0]),
            "padding_share": 1 - totals[0] / totals[1],
            "tokens_per_second": totals[0] / seconds,
            "examples_per_second": (trainer.state.global_step - self.updates_before) * batch_size / seconds,
            "parameters": parameters,
            "flops_per_second": speed,
            "peak_memory_bytes": _peak_memory(),
        }
        if peak is not None:
            found |= {"peak_flops": peak, "mfu": speed / (peak * trainer.args.world_size)}
        return found


def _peak() -> float | None:
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in PEAKS.items() if part in name), None)


def _peak_memory() -> int:
    """Most memory held at once: of the accelerator, or of the process where there is none."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
