"""What a running sweep shows at Ray's Prometheus endpoint, beside Ray's own figures of the cluster.

`ray_sacpo_steps` (gauge, by `state`), `ray_sacpo_device_seconds_total` and `ray_sacpo_verdicts_total` (counters), each
by `sweep`, the run's id. https://docs.ray.io/en/latest/cluster/metrics.html says where Prometheus finds the endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge


class Metrics:
    """One sweep's figures; made in the actor that knows them.

    Args:
        run: Id of the sweep run.
    """

    def __init__(self, run: str) -> None:
        mine = {"sweep": run}
        self._steps = Gauge("sacpo_steps", "Steps of the sweep, by state", tag_keys=("sweep", "state"))
        self._device_seconds = Counter("sacpo_device_seconds", "Seconds that steps held accelerators", ("sweep",))
        self._verdicts = Counter("sacpo_verdicts", "Verdicts of judges", ("sweep",))
        for metric in (self._steps, self._device_seconds, self._verdicts):
            metric.set_default_tags(mine)

    def states(self, states: Mapping[str, int]) -> None:
        """How many steps are in which state now."""
        for state, count in states.items():
            self._steps.set(count, tags={"state": state})

    def spent(self, device_seconds: float, verdicts: int) -> None:
        """What the sweep spent on a step."""
        for counter, value in ((self._device_seconds, device_seconds), (self._verdicts, verdicts)):
            if value > 0:
                counter.inc(value)
