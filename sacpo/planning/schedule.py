"""The order of a plan's steps: the critical path first, and no more at once than fits.

This is the one place that decides which step is ready. `sacpo.cluster.dispatch` asks it on a cluster,
`sacpo.execution.in_process` in the calling process, and `python -m tests.benchmarks.scheduling` simulates clusters with
it. Pure.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sacpo.planning.kinds import KINDS, worker_slots
from sacpo.planning.plan import Plan


class Pool(enum.Enum):
    """Where a step runs: on worker slots of the cluster, or on the driver side, holding none."""

    WORKERS = "workers"
    DRIVER = "driver"


@dataclass(frozen=True)
class ScheduledStep:
    """A step as the schedule sees it.

    Attributes:
        parents: The steps that must have succeeded before.
        slots: Worker slots that it holds while it runs; 0 for a driver-side step.
        cost: Its duration, in a unit that all steps share.
        may_fail: Those of its parents without which it is carried out if they fail.
    """

    parents: tuple[str, ...]
    slots: int
    cost: float
    may_fail: frozenset[str] = frozenset()

    @property
    def pool(self) -> Pool:
        """Where it runs."""
        return Pool.WORKERS if self.slots else Pool.DRIVER


def scheduled_steps(plan: Plan) -> dict[str, ScheduledStep]:
    """A plan's steps. Its preconditions become parents of every step that they do not depend on themselves."""
    before_preconditions: set[str] = set()
    parents = {step_id: list(step.parents.values()) for step_id, step in plan.steps.items()}
    for precondition in plan.preconditions:
        before_preconditions |= {ancestor for step_id in precondition for ancestor in plan.ancestors(step_id)}
        for step_id in parents.keys() - before_preconditions:
            parents[step_id] += precondition
    return {
        step_id: ScheduledStep(
            tuple(dict.fromkeys(parents[step_id])),
            worker_slots(step.kind, step.payload, plan.space.resources),
            KINDS[step.kind].cost,
            frozenset(step.parents.values() if KINDS[step.kind].tolerates_failures else ()),
        )
        for step_id, step in plan.steps.items()
    }


class Schedule:
    """Hands out steps that are ready, and records how they ended.

    Of the ready steps, the one with the longest path to an end of the graph goes first. A step that waits for worker
    slots is not overtaken by one that needs fewer, since it might then never start.

    Args:
        steps: The steps.
        targets: The steps that are required.
        done: Steps that are done already; steps that only these depend on are not carried out.
        worker_slots: Worker slots of the cluster.
        driver_steps: How many driver-side steps may run at once.
    """

    def __init__(
        self,
        steps: Mapping[str, ScheduledStep],
        targets: Iterable[str],
        done: Collection[str],
        worker_slots: int,
        driver_steps: int,
    ) -> None:
        self._limits = {Pool.WORKERS: worker_slots, Pool.DRIVER: driver_steps}
        self._used = dict.fromkeys(Pool, 0)
        self._steps = steps
        self._resolved = set(done)  # done, failed, or dependent on a failed step
        self._failed: set[str] = set()
        self._running: dict[str, None] = {}  # in the order in which they were handed out
        required = _required(steps, targets, done)
        self._open_parents = {step_id: sum(p not in done for p in steps[step_id].parents) for step_id in required}
        self._children: dict[str, list[str]] = {}
        for step_id in required:
            for parent in steps[step_id].parents:
                self._children.setdefault(parent, []).append(step_id)
        self._path: dict[str, float] = {}  # cost of the longest path from a step to an end
        for step_id in reversed(required):
            after = max((self._path[child] for child in self._children.get(step_id, ())), default=0.0)
            self._path[step_id] = steps[step_id].cost + after
        self._order = {step_id: i for i, step_id in enumerate(required)}
        self._ready: dict[Pool, list[tuple[float, int, str]]] = {pool: [] for pool in Pool}
        for step_id in required:
            if not self._open_parents[step_id]:
                self.requeue(step_id)

    def is_finished(self, step_ids: Iterable[str] | None = None) -> bool:
        """Whether these steps (all required steps if None) are resolved."""
        return self._resolved.issuperset(self._open_parents if step_ids is None else step_ids)

    def resolved(self) -> set[str]:
        """The steps that are done, have failed, or depend on a failed step."""
        return set(self._resolved)

    def states(self) -> dict[str, int]:
        """Number of steps that are done, failed (dependents of failed ones included), running and waiting."""
        failed, running = len(self._failed), len(self._running)
        return {
            "done": len(self._resolved) - failed,
            "failed": failed,
            "running": running,
            "waiting": len(self._open_parents.keys() - self._resolved) - running,
        }

    def pop_ready(self, pool: Pool) -> str | None:
        """The next step to start in a pool, which counts as running from now on; None if none may start.

        One step may always start in an idle pool, even one that holds more slots than there are at the moment.
        """
        heap = self._ready[pool]
        while heap and (heap[0][2] in self._resolved or heap[0][2] in self._running):
            heapq.heappop(heap)
        if not heap:
            return None
        step_id = heap[0][2]
        if self._used[pool] and self._used[pool] + self._size(step_id) > self._limits[pool]:
            return None
        heapq.heappop(heap)
        self._running[step_id] = None
        self._used[pool] += self._size(step_id)
        return step_id

    def running(self) -> dict[str, int]:
        """The worker slots of each running step that holds some, in the order in which the steps were handed out."""
        return {step_id: slots for step_id in self._running if (slots := self._steps[step_id].slots)}

    def upcoming(self, stages: Collection[str], limit: int) -> list[set[str]]:
        """For each of these stages that is still to be handed out but waits for no stage except running ones: these.

        Args:
            stages: The plan's stages, as a set or the keys of a dictionary.
            limit: How many to find at most.
        """
        waiting = (
            stage
            for stage in stages
            if stage in self._open_parents and stage not in self._resolved and stage not in self._running
        )
        predecessors = (self._running_before(stage, stages) for stage in waiting)
        return list(itertools.islice((before for before in predecessors if before is not None), limit))

    def _running_before(self, step_id: str, stages: Collection[str]) -> set[str] | None:
        """The running ones of the stages that a step waits for; None if it waits for one that does not run."""
        running: set[str] = set()
        seen: set[str] = set()
        open_steps = [*self._steps[step_id].parents]
        while open_steps:
            current = open_steps.pop()
            if current in seen or current in self._resolved:
                continue
            seen.add(current)
            if current not in stages:
                open_steps += self._steps[current].parents
            elif current in self._running:
                running.add(current)
            else:
                return None
        return running

    def finish(self, step_id: str, succeeded: bool) -> None:
        """The step has ended. If it failed, the steps that cannot do without it are resolved as failed too."""
        self.suspend(step_id)
        if step_id in self._resolved:
            return
        self._resolved.add(step_id)
        if not succeeded:
            self._failed.add(step_id)
        for child in self._children.get(step_id, ()):
            self._open_parents[child] -= 1
            if not succeeded and step_id not in self._steps[child].may_fail:
                self.finish(child, succeeded=False)
            elif not self._open_parents[child]:
                self.requeue(child)

    def suspend(self, step_id: str) -> None:
        """The step no longer runs and has no outcome; it is not handed out again before `requeue`."""
        if step_id in self._running:
            del self._running[step_id]
            self._used[self._steps[step_id].pool] -= self._size(step_id)

    def requeue(self, step_id: str) -> None:
        """Make a step ready whose parents are done."""
        if step_id not in self._resolved:
            entry = (-self._path[step_id], self._order[step_id], step_id)
            heapq.heappush(self._ready[self._steps[step_id].pool], entry)

    def _size(self, step_id: str) -> int:
        """Share of its pool's limit that a step uses."""
        return max(1, self._steps[step_id].slots)


def _required(steps: Mapping[str, ScheduledStep], targets: Iterable[str], done: Collection[str]) -> list[str]:
    """The steps to carry out for the targets, parents before children."""
    order: dict[str, None] = {}
    stack = [(step_id, False) for step_id in targets][::-1]
    while stack:
        step_id, expanded = stack.pop()
        if expanded:
            order.setdefault(step_id)
        elif step_id not in order and step_id not in done:
            stack.append((step_id, True))
            stack += [(parent, False) for parent in reversed(steps[step_id].parents)]
    return list(order)
