"""How the examples of one update are spread over workers, forward passes and gradient accumulation."""

from __future__ import annotations

from dataclasses import dataclass

from sacpo.planning.payloads import AnyTrainPayload, KTOPayload
from sacpo.spaces.space import Resources


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

    @property
    def passes(self) -> int:
        """Forward passes of an update, over all workers."""
        return self.total // self.per_device

    @classmethod
    def of(cls, payload: AnyTrainPayload, resources: Resources, workers: int) -> Batch:
        """The batch of a training step: the largest forward pass that divides a worker's share and is allowed.

        KTO is an exception: its KL term is estimated over one forward batch of the whole group, so `kl_batch_size`
        decides.
        """
        total = payload.settings.batch_size
        if isinstance(payload, KTOPayload):
            forward = payload.settings.kl_batch_size or total
        else:
            share = total // workers
            sizes = [n for n in range(1, share + 1) if share % n == 0 and n <= resources.per_device_batch]
            forward = workers * max(sizes)
        return cls(total, forward // workers, total // forward)
