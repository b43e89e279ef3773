"""Worker groups that train one stage after the other: the next stage finds processes that have imported and joined.

A group whose stage has ended takes another one if that stage is next in the order of the schedule. If a stage only
lacks steps without a group, such as its reference log-probabilities, and these can be carried out beside the group, it
waits, but no longer than a new group takes to start. Otherwise it ends at once and its CPUs and accelerators are free.
A stage that fails ends its group.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sacpo.cluster.mailbox import Mailbox
from sacpo.execution.job import Job
from sacpo.planning.records import StepResult
from sacpo.spaces.space import Resources

WAIT_S = 20.0
"""Seconds for which a group waits for a stage that is not ready yet: about as long as the start of a new group takes,
so that waiting in vain costs no more than starting anew."""


@dataclass(frozen=True)
class StageEnd:
    """What the first worker of a group returns at the end of a stage.

    Attributes:
        result: The step's result.
        node_id: Ray's id of the worker's node.
        is_leaving: Whether the group ends now, since one of its machines is about to be taken away.
    """

    result: StepResult
    node_id: str
    is_leaving: bool


StartGroup = Callable[[Any, str], None]
"""Runs a worker group to its end: takes the mailbox and the group's id; raises the error that ended the group."""


class WorkerGroup:
    """A worker group, from its start to its end.

    Args:
        resources: Resources of the stage that it is started for.
        mailbox: The mailbox of this process.
        start: Runs the group.
    """

    def __init__(self, resources: Resources, mailbox: Any, start: StartGroup) -> None:
        self.shape = shape(resources)
        self._id, self._mailbox, self.workers = uuid.uuid4().hex, mailbox, resources.workers
        self._stages = 0
        self.is_leaving = False
        self.idle_since = 0.0
        self._end: concurrent.futures.Future[None] = concurrent.futures.Future()
        threading.Thread(target=self._run, args=(start,), name="worker group", daemon=True).start()

    def _run(self, start: StartGroup) -> None:
        try:
            start(self._mailbox, self._id)
        except BaseException as error:
            self._end.set_exception(error)
        else:
            self._end.set_result(None)

    def ended(self) -> bool:
        """Whether its workers have ended."""
        return self._end.done()

    def train(self, job: Job[Any]) -> StageEnd:
        """Have a stage trained and wait for it.

        Raises:
            Exception: the error that ended the group.
        """
        result = self._mailbox.post.remote(self._id, self._stages, job, self.workers).future()
        self._stages += 1
        concurrent.futures.wait([result, self._end], return_when=concurrent.futures.FIRST_COMPLETED)
        if not result.done():
            self._end.result()
        ended: StageEnd = result.result()
        self.is_leaving = ended.is_leaving
        return ended

    def end(self) -> None:
        """Let the workers exit; they have no stage."""
        self._mailbox.post.remote(self._id, self._stages, None, self.workers)


@dataclass(frozen=True)
class RunningStep:
    """A step that a dispatcher has handed out.

    Attributes:
        step_id: Its id.
        slots: Worker slots that it holds.
        is_stage: Whether it trains on a worker group.
    """

    step_id: str
    slots: int
    is_stage: bool


class WorkerGroups:
    """The worker groups that this process has started.

    Where a dispatcher says which steps run (`follow`), stages take groups over. Otherwise every stage has a group of
    its own, which ends with it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()  # its lock is reentrant
        self._running: Sequence[RunningStep] | None = None
        self._slots = 0  # of the cluster
        self._upcoming: Sequence[Set[str]] = ()
        self._idle: list[WorkerGroup] = []  # in the order in which their stages ended
        self._alive = 0
        self._with_group: set[str] = set()  # stages that have a group
        self._trained: set[str] = set()  # stages that have ended on their group and have no record yet
        self._mailbox: Any = None

    def follow(self, running: Sequence[RunningStep] | None, slots: int, upcoming: Sequence[Set[str]] = ()) -> None:
        """Hand groups over in the order in which steps were handed out.

        The first steps, as far as the cluster's worker slots are enough for them, are next. A stage among them takes
        over a group that has nothing to do, or starts one. Any other stage waits for a group that none of these needs.
        A group that no stage is next for ends, so that its resources go to the other steps, or waits for an upcoming
        stage up to `WAIT_S` seconds.

        Args:
            running: All steps that have been handed out and have not ended, in this order. None: from now on every
                stage has a group of its own.
            slots: Worker slots of the cluster.
            upcoming: For each stage that is not ready yet but waits for no stage except running ones: these.
        """
        with self._changed:
            self._running, self._slots, self._upcoming = running, slots, upcoming
            unfinished = {step.step_id for step in running or ()}
            self._trained &= unfinished
            self._hand_over()

    @contextlib.contextmanager
    def group(self, job: Job[Any], start: StartGroup) -> Iterator[WorkerGroup]:
        """A group for one attempt at a stage. An error ends the group.

        Args:
            job: The stage's job.
            start: Starts a group if none is there.
        """
        stage = job.step.id
        with self._changed:
            self._trained.discard(stage)
            group = self._take_or_start(stage, job.resources, start)
            self._with_group.add(stage)
        try:
            yield group
        except BaseException as error:
            if isinstance(error, ray.exceptions.RayActorError):
                self._mailbox = None  # perhaps it was the mailbox that died
            self._release(stage)
            raise
        with self._changed:
            self._trained.add(stage)
            self._release(stage, None if group.is_leaving else group)

    def _release(self, stage: str, usable: WorkerGroup | None = None) -> None:
        with self._changed:
            self._with_group.discard(stage)
            if usable is None:
                self._alive -= 1
            else:
                usable.idle_since = time.monotonic()
                self._idle.append(usable)
                check = threading.Timer(WAIT_S, self._hand_over)
                check.daemon = True
                check.start()
            self._hand_over()

    def _take_or_start(self, stage: str, resources: Resources, start: StartGroup) -> WorkerGroup:
        while True:
            next_stages = self._next()
            is_next = self._running is None or stage in next_stages
            while self._idle and (is_next or len(self._idle) > len(next_stages - self._with_group)):
                group = self._idle.pop()
                if group.shape == shape(resources) and not group.ended():
                    return group
                self._end(group)
            if is_next or not self._alive:
                self._alive += 1
                return WorkerGroup(resources, self._open_mailbox(), start)
            self._changed.wait()

    def _next(self) -> set[str]:
        """The stages that may have a group now."""
        free = self._slots
        stages: set[str] = set()
        for step in self._running or ():
            if step.step_id not in self._trained:
                free -= step.slots
                if free < 0:
                    break
                if step.is_stage:
                    stages.add(step.step_id)
        return stages

    def _hand_over(self) -> None:
        """End the groups that no stage will take, and wake the stages that wait."""
        with self._changed:
            first = len(self._next() - self._with_group)
            stages = {step.step_id for step in self._running or () if step.is_stage}
            awaited = len(stages - self._with_group - self._trained)
            awaited += sum(before <= self._trained for before in self._upcoming)
            while len(self._idle) > first:
                oldest = self._idle[0]
                in_time = time.monotonic() < oldest.idle_since + WAIT_S
                if len(self._idle) <= awaited and in_time and self._has_room_beside(oldest):
                    break
                self._end(self._idle.pop(0))
            self._changed.notify_all()

    def _has_room_beside(self, group: WorkerGroup) -> bool:
        """Whether the first of the handed-out steps that need no group can be carried out while all groups stay."""
        others = (step.slots for step in self._running or () if not step.is_stage)
        return next(others, 0) <= self._slots - self._alive * group.workers

    def _end(self, group: WorkerGroup) -> None:
        group.end()
        self._alive -= 1

    def _open_mailbox(self) -> Any:
        if self._mailbox is None:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            actor = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here, max_concurrency=10_000)
            self._mailbox = actor.remote()
        return self._mailbox


def shape(resources: Resources) -> tuple[Any, ...]:
    """What two stages must have in common to train on the same group."""
    return (
        resources.workers,
        resources.cpus_per_worker,
        resources.gpus_per_worker,
        resources.sharding,
        resources.optimizer_offload,
        resources.max_restarts,
    )


GROUPS = WorkerGroups()
"""The groups of this process."""
