"""Metrics of a running sweep at Ray's Prometheus endpoint, beside Ray's own metrics of the cluster.

`ray_sacpo_steps` (gauge, by `state`), `ray_sacpo_device_seconds_total` and `ray_sacpo_verdicts_total` (counters), each
by `sweep`, the run's id. https://docs.ray.io/en/latest/cluster/metrics.html says where Prometheus finds the endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge


class SweepMetrics:
    """Metrics of one sweep, created in the dispatcher.

    Args:
        run: Id of the sweep run.
    """

    def __init__(self, run: str) -> None:
        self._steps = Gauge("sacpo_steps", "Steps of the sweep, by state", tag_keys=("sweep", "state"))
        self._device_seconds = Counter("sacpo_device_seconds", "Seconds that steps held accelerators", ("sweep",))
        self._verdicts = Counter("sacpo_verdicts", "Verdicts of judges", ("sweep",))
        for metric in (self._steps, self._device_seconds, self._verdicts):
            metric.set_default_tags({"sweep": run})

    def set_states(self, states: Mapping[str, int]) -> None:
        """Report how many steps are in each state now."""
        for state, count in states.items():
            self._steps.set(count, tags={"state": state})

    def add_step(self, device_seconds: float, verdicts: int) -> None:
        """Count what an attempt at a step spent."""
        for counter, value in ((self._device_seconds, device_seconds), (self._verdicts, verdicts)):
            if value > 0:
                counter.inc(value)
