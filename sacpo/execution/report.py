"""What a step reports to its caller: measured numbers, effective settings and times."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sacpo.planning.metrics import Metrics
from sacpo.planning.records import Effective, StepResult


@dataclass
class StepReport:
    """Filled in by a step while it works.

    Attributes:
        metrics: Measured numbers, of the type that the step's kind has.
        effective: Settings read back from the objects that did the work.
        workers: Processes that worked.
        devices: Accelerators (CPU workers where there are none) that were held.
        started_at: When the first worker process started, in seconds since the epoch.
        first_update_at: When the first training update, answer or score began.
        ended_at: When the work was done.
        start_parts: (part of the start, when it was over), in order.
    """

    metrics: Metrics = field(default_factory=Metrics)
    effective: Effective = field(default_factory=Effective)
    workers: int = 1
    devices: int = 0
    started_at: float = field(default_factory=time.time)
    first_update_at: float | None = None
    ended_at: float | None = None
    start_parts: list[tuple[str, float]] = field(default_factory=list)

    def end_start_part(self, part: str) -> None:
        """Note that a part of the work before the first update is over."""
        self.start_parts.append((part, time.time()))

    def start_seconds(self) -> dict[str, float]:
        """Seconds of each part of the start."""
        times = [self.started_at, *(when for _, when in self.start_parts)]
        return {
            part: after - before for (part, _), before, after in zip(self.start_parts, times, times[1:], strict=False)
        }

    def result(self) -> StepResult:
        """The report as it crosses processes, with durations."""
        ended_at = self.ended_at if self.ended_at is not None else time.time()
        seconds = ended_at - self.started_at
        return StepResult(
            metrics=self.metrics,
            effective=self.effective,
            workers=self.workers,
            seconds=seconds,
            device_seconds=seconds * self.devices,
            started_at=self.started_at,
            first_update_at=self.first_update_at if self.first_update_at is not None else self.started_at,
            ended_at=ended_at,
        )
