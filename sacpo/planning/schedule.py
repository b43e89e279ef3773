"""Which step next: the critical path first, and never more at once than can work.

Pure. On a cluster `sacpo.cluster.dispatch` asks it; `python -m tests.benchmarks.scheduling` asks the same code about
clusters that are not at hand.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sacpo.execution.job import workers_held
from sacpo.planning.plan import Plan

# What a step of a kind takes, roughly and in any unit: only their order along a path matters.
_COSTS = {"train": 10.0, "reference": 2.0, "generate": 2.0, "probabilities": 1.0, "judge": 1.0}
_LIGHT = 0.2


@dataclass(frozen=True)
class Node:
    """A step as the schedule sees it.

    Attributes:
        parents: The steps that must have gone well before.
        held: Workers' places that it holds while it works; 0 for a light one, which a trial's process does itself.
        cost: How long it takes, in a unit that all share.
    """

    parents: tuple[str, ...]
    held: int
    cost: float


def nodes(plan: Plan) -> dict[str, Node]:
    """A plan's steps; its preconditions are parents of everything that they do not need themselves."""
    resources = plan.space.resources.model_dump()
    passed: set[str] = set()
    before: dict[str, list[str]] = {step: list(found.parents.values()) for step, found in plan.steps.items()}
    for gate in plan.preconditions:
        passed |= {needed for step in gate for needed in plan.ancestors(step)}
        for step in before.keys() - passed:
            before[step] += gate
    return {
        step: Node(
            tuple(dict.fromkeys(before[step])),
            workers_held(found.kind, found.payload, resources),
            _COSTS.get(found.kind, _LIGHT),
        )
        for step, found in plan.steps.items()
    }


class Schedule:
    """Hands steps out and is told how they ended.

    Of the steps that are ready, the one goes first from which the longest path leads to an end. A step that holds
    places is not overtaken by one that needs fewer: it would never start.

    Args:
        nodes: The steps.
        targets: The steps that are wanted.
        done: Steps that are done already; what only they need is not done again.
        capacity: Workers' places.
        light: How many light steps may be under way at once.
    """

    def __init__(
        self, nodes: Mapping[str, Node], targets: Iterable[str], done: Collection[str], capacity: int, light: int
    ) -> None:
        self.capacity, self.light = capacity, light
        self._nodes = nodes
        self._settled = set(done)  # done, failed, or never to be done since something before failed
        self._failed: set[str] = set()
        self._running: set[str] = set()
        self._used = {True: 0, False: 0}  # places, and light steps, that the running ones take
        needed = _needed(nodes, targets, done)
        self._open = {step: sum(p not in done for p in nodes[step].parents) for step in needed}
        self._children: dict[str, list[str]] = {}
        for step in needed:
            for parent in nodes[step].parents:
                self._children.setdefault(parent, []).append(step)
        self._path: dict[str, float] = {}
        for step in reversed(needed):
            after = max((self._path[child] for child in self._children.get(step, ())), default=0.0)
            self._path[step] = nodes[step].cost + after
        self._order = {step: i for i, step in enumerate(needed)}
        self._ready: dict[bool, list[tuple[float, int, str]]] = {False: [], True: []}  # by whether they hold places
        for step in needed:
            if not self._open[step]:
                self.offer(step)

    def over(self, steps: Iterable[str] | None = None) -> bool:
        """Whether these steps (all of them if none are named) are resolved: done, or not to be done any more."""
        return self._settled.issuperset(self._open if steps is None else steps)

    def resolved(self) -> set[str]:
        """The steps that are done, or not to be done any more."""
        return set(self._settled)

    def states(self) -> dict[str, int]:
        """How many steps are done, failed (or need one that did), under way, and waiting."""
        failed, running = len(self._failed), len(self._running)
        done = len(self._settled) - failed
        return {
            "done": done,
            "failed": failed,
            "running": running,
            "waiting": len(self._open.keys() - self._settled) - running,
        }

    def take(self, holds: bool) -> str | None:
        """The step to carry out now, of those that hold workers' places or of the light ones; none if none may start.

        One may always start, also where it holds more than there is room for just now.
        """
        heap = self._ready[holds]
        while heap and (heap[0][2] in self._settled or heap[0][2] in self._running):
            heapq.heappop(heap)
        if not heap:
            return None
        step = heap[0][2]
        used, limit = self._used[holds], self.capacity if holds else self.light
        if used and used + self._takes(step) > limit:
            return None
        heapq.heappop(heap)
        self._running.add(step)
        self._used[holds] += self._takes(step)
        return step

    def finish(self, step: str, well: bool) -> None:
        """The step has ended. What needs a failed one is resolved with it."""
        self.rest(step)
        if step in self._settled:
            return
        self._settled.add(step)
        if not well:
            self._failed.add(step)
        for child in self._children.get(step, ()):
            self._open[child] -= 1
            if not well:
                self.finish(child, well=False)
            elif not self._open[child]:
                self.offer(child)

    def rest(self, step: str) -> None:
        """The step is carried out no longer, and is not to be until it is offered again."""
        if step in self._running:
            self._running.remove(step)
            self._used[bool(self._nodes[step].held)] -= self._takes(step)

    def offer(self, step: str) -> None:
        """Put a step up whose parents are done."""
        if step not in self._settled:
            heapq.heappush(self._ready[bool(self._nodes[step].held)], (-self._path[step], self._order[step], step))

    def _takes(self, step: str) -> int:
        return max(1, self._nodes[step].held)


def _needed(nodes: Mapping[str, Node], targets: Iterable[str], done: Collection[str]) -> list[str]:
    """What is to be done for the targets, parents before children."""
    order: dict[str, None] = {}
    stack = [(step, False) for step in targets][::-1]
    while stack:
        step, expanded = stack.pop()
        if expanded:
            order.setdefault(step)
        elif step not in order and step not in done:
            stack.append((step, True))
            stack += [(parent, False) for parent in reversed(nodes[step].parents)]
    return list(order)
