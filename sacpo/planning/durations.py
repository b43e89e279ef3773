"""How long the open steps of a plan will take, from the durations of like steps that are done. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sacpo.planning.kinds import KINDS
from sacpo.planning.payloads import hashed
from sacpo.planning.plan import Plan, Step
from sacpo.planning.records import StepRecord
from sacpo.planning.schedule import scheduled_steps

_PER_KIND = 32  # done steps of a kind that are compared, so that large plans stay quick


@dataclass(frozen=True)
class TimedStep:
    """A done step.

    Attributes:
        kind: Its kind.
        payload: The part of its payload that its id is the hash of.
        seconds: How long it took.
    """

    kind: str
    payload: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Remaining:
    """The open steps of a plan; times in seconds.

    Attributes:
        work: Their durations, one after the other.
        chain: The longest chain of steps that need each other, which no number of workers shortens.
    """

    work: float
    chain: float

    def seconds_left(self, done: float, running: float, elapsed: float) -> float | None:
        """Time to the end at the pace so far; None before there is one.

        Args:
            done: Durations of the steps that ended in this run.
            running: Time since the start of each running step, summed.
            elapsed: Time since the start of the run.
        """
        if done <= 0 or elapsed <= 0:
            return None
        return max(self.chain - running, (self.work - running) * elapsed / (done + running), 0.0)


def timed_steps(plan: Plan, records: Mapping[str, StepRecord]) -> list[TimedStep]:
    """The done steps of a plan."""
    steps = plan.steps
    return [TimedStep(steps[i].kind, hashed(steps[i].payload), record.seconds) for i, record in records.items()]


class Durations:
    """Expected durations of steps: the mean of the done steps of the kind whose settings agree most.

    Without a done step of the kind, its relative cost (`StepKind.cost`) is scaled by the other kinds' durations.

    Args:
        done: Done steps, of this sweep or of others.
    """

    def __init__(self, done: Iterable[TimedStep]) -> None:
        self._known: dict[str, list[tuple[frozenset[str], float]]] = {}
        for step in done:
            self._known.setdefault(step.kind, []).append((_settings(step.payload), step.seconds))
        means = {kind: sum(seconds for _, seconds in known) / len(known) for kind, known in self._known.items()}
        self._seconds_per_cost = sum(means.values()) / sum(KINDS[kind].cost for kind in means) if means else 0.0

    def seconds(self, step: Step) -> float:
        """Expected seconds of a step; 0 if nothing is known."""
        own, likest, durations = _settings(hashed(step.payload)), -1.0, list[float]()
        for settings, seconds in self._known.get(step.kind, [])[-_PER_KIND:]:
            likeness = len(own & settings) / max(1, len(own | settings))
            if likeness > likest:
                likest, durations = likeness, []
            if likeness == likest:
                durations.append(seconds)
        if not durations:
            return KINDS[step.kind].cost * self._seconds_per_cost
        return sum(durations) / len(durations)

    def remaining(self, plan: Plan, ended: Collection[str]) -> Remaining:
        """The work that is left.

        Args:
            plan: The plan.
            ended: Ids of the steps that are done or failed.
        """
        scheduled, ends = scheduled_steps(plan), dict[str, float]()

        def end(step_id: str) -> float:
            if step_id not in ends:
                start = max((end(parent) for parent in scheduled[step_id].parents), default=0.0)
                ends[step_id] = start + (0.0 if step_id in ended else self.seconds(plan.steps[step_id]))
            return ends[step_id]

        chain = max((end(step_id) for step_id in plan.steps), default=0.0)
        work = sum(self.seconds(step) for step_id, step in plan.steps.items() if step_id not in ended)
        return Remaining(work, chain)


def _settings(payload: Mapping[str, Any], where: str = "") -> frozenset[str]:
    """Every setting of a payload with its value, as text."""
    parts: set[str] = set()
    for name, value in payload.items():
        if isinstance(value, Mapping):
            parts |= _settings(value, f"{where}{name}.")
        else:
            parts.add(f"{where}{name}={json.dumps(value, sort_keys=True)}")
    return frozenset(parts)
