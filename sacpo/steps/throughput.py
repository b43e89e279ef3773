"""Counts tokens, padding, speed and memory of the updates that a training run makes."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch

from sacpo.planning.metrics import Throughput

# Dense bfloat16 peaks of single accelerators in FLOP/s, from their makers' data sheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "A10G": 70e12}


class ThroughputCounter:
    """Counts forward batches as a trainer takes them."""

    def __init__(self) -> None:
        self.tokens: Any = 0  # a tensor on accelerators: reading it at every step would wait for the device
        self.computed: Any = 0  # tokens that the model computed; a prompt is computed once for answers that are packed
        self.slots = 0  # the same with padding
        self.started = 0.0
        self.updates_before: int | None = None

    def count(self, inputs: dict[str, Any], updates: int) -> None:
        """Add one forward batch; `updates` is the number of updates made before it."""
        if self.updates_before is None:
            self.updates_before, self.started = updates, time.monotonic()
        self.tokens = self.tokens + sum(mask.sum() for mask in _masks(inputs))

    def count_padded(self, inputs: dict[str, Any]) -> None:
        """Add what a forward pass over a padded batch computes."""
        for mask in _masks(inputs):
            self.computed = self.computed + mask.sum()
            self.slots += mask.numel()

    def count_packed(self, tokens: int, slots: int) -> None:
        """Add what a forward pass over packed rows computes: tokens, and tokens with padding."""
        self.computed, self.slots = self.computed + tokens, self.slots + slots

    def forget_packed(self) -> None:
        """Leave out what was computed only to compare packed with padded rows."""
        self.computed, self.slots = 0, 0

    def metrics(self, trainer: Any, batch_size: int) -> Throughput | None:
        """Figures of all workers together, over the updates that this run made (not those before a resume).

        Args:
            trainer: The trainer after training.
            batch_size: Examples of an update.

        Returns:
            None if the run made no update.
        """
        if self.updates_before is None:
            return None
        seconds = time.monotonic() - self.started
        accelerator = trainer.accelerator
        counted = torch.tensor([int(self.tokens), int(self.computed), self.slots], dtype=torch.float64)
        tokens, computed, slots = accelerator.reduce(counted.to(accelerator.device), reduction="sum").tolist()
        model = accelerator.unwrap_model(trainer.model)
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
        trained = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad)
        flops_per_second = (4 * parameters + 2 * trained) * computed / seconds
        peak = _peak_flops()
        return Throughput(
            training_seconds=seconds,
            tokens=int(tokens),
            computed_tokens=int(computed),
            padding_fraction=1 - computed / slots,
            padded_because=trainer.padded_because,
            tokens_per_second=tokens / seconds,
            examples_per_second=(trainer.state.global_step - self.updates_before) * batch_size / seconds,
            parameters=parameters,
            flops_per_second=flops_per_second,
            peak_memory_bytes=_peak_memory(),
            peak_flops=peak,
            mfu=None if peak is None else flops_per_second / (peak * trainer.args.world_size),
        )


def _masks(inputs: dict[str, Any]) -> list[Any]:
    return [mask for name, mask in inputs.items() if name.endswith("attention_mask")]


def _peak_flops() -> float | None:
    """Dense bfloat16 peak of this process's accelerator; None if it is unknown or there is none."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in PEAKS.items() if part in name), None)


def _peak_memory() -> int:
    """Largest number of bytes held at once: of the accelerator, or of the process where there is none."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
