"""The work that remains in a plan, from the durations of steps that are done."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sacpo.planning.plan import Plan
from sacpo.planning.records import StepRecord


def remaining_work(plan: Plan, records: Mapping[str, StepRecord], ended: Collection[str]) -> float:
    """Expected seconds of the steps that have not ended, one after the other.

    A step is expected to take as long as the mean of the done steps of its kind (of all done steps, if there is none).

    Args:
        plan: The plan.
        records: Records of the done steps.
        ended: Ids of the steps that are done or failed.
    """
    seconds_by_kind: dict[str, list[float]] = {}
    for step_id, record in records.items():
        seconds_by_kind.setdefault(plan.steps[step_id].kind, []).append(record.seconds)
    all_seconds = [seconds for values in seconds_by_kind.values() for seconds in values]
    mean = {kind: sum(values) / len(values) for kind, values in seconds_by_kind.items()}
    fallback = sum(all_seconds) / len(all_seconds) if all_seconds else 0.0
    return sum(mean.get(step.kind, fallback) for step_id, step in plan.steps.items() if step_id not in ended)
