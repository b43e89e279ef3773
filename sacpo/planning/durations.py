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


def remaining_steps(
    plan: Plan, records: Mapping[str, StepRecord], past: Iterable[TimedStep], failed: Collection[str] = ()
) -> Remaining:
    """The work that is left in a plan.

    A step is expected to take the mean of the done steps of its kind whose settings agree most with its own. Without a
    done step of the kind, its relative cost (`StepKind.cost`) is scaled by the other kinds' durations.

    Args:
        plan: The plan.
        records: Records of its done steps.
        past: Done steps of any sweep.
        failed: Ids of its failed steps.
    """
    own = (
        TimedStep(plan.steps[i].kind, hashed(plan.steps[i].payload), record.seconds) for i, record in records.items()
    )
    durations, scheduled, ends = Durations([*past, *own]), scheduled_steps(plan), dict[str, float]()
    ended = records.keys() | failed
    expected = {step_id: durations.seconds(step) for step_id, step in plan.steps.items() if step_id not in ended}

    def end(step_id: str) -> float:
        if step_id not in ends:
            start = max((end(parent) for parent in scheduled[step_id].parents), default=0.0)
            ends[step_id] = start + expected.get(step_id, 0.0)
        return ends[step_id]

    return Remaining(sum(expected.values()), max(map(end, plan.steps), default=0.0))


class Durations:
    """Expected durations of steps (`remaining_steps` says how).

    Args:
        done: Done steps, of this sweep or of others.
    """

    def __init__(self, done: Iterable[TimedStep]) -> None:
        by_kind: dict[str, list[TimedStep]] = {}
        for step in done:
            by_kind.setdefault(step.kind, []).append(step)
        means = {kind: sum(step.seconds for step in steps) / len(steps) for kind, steps in by_kind.items()}
        self._seconds_per_cost = sum(means.values()) / sum(KINDS[kind].cost for kind in means) if means else 0.0
        self._known = {
            kind: [(_settings(step.payload), step.seconds) for step in steps[-_PER_KIND:]]
            for kind, steps in by_kind.items()
        }

    def seconds(self, step: Step) -> float:
        """Expected seconds of a step; 0 if nothing is known."""
        own, likest, durations = _settings(hashed(step.payload)), -1.0, list[float]()
        for settings, seconds in self._known.get(step.kind, []):
            likeness = len(own & settings) / max(1, len(own | settings))
            if likeness > likest:
                likest, durations = likeness, []
            if likeness == likest:
                durations.append(seconds)
        if not durations:
            return KINDS[step.kind].cost * self._seconds_per_cost
        return sum(durations) / len(durations)


def _settings(payload: Mapping[str, Any], where: str = "") -> frozenset[str]:
    """Every setting of a payload with its value, as text."""
    parts: set[str] = set()
    for name, value in payload.items():
        if isinstance(value, Mapping):
            parts |= _settings(value, f"{where}{name}.")
        else:
            parts.add(f"{where}{name}={json.dumps(value, sort_keys=True)}")
    return frozenset(parts)
