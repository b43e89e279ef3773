"""Worker groups that train one stage after the other: the next stage finds processes that have imported and joined.

A group whose stage has ended takes another one if that stage is next in the order of the schedule; otherwise it ends at
once and its CPUs and accelerators are free. A stage that fails ends its group.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sacpo.cluster.mailbox import Mailbox
from sacpo.execution.job import Job
from sacpo.planning.records import StepResult
from sacpo.spaces.space import Resources


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
        self._idle: list[WorkerGroup] = []
        self._alive = 0
        self._with_group: set[str] = set()  # stages that have a group
        self._trained: dict[str, bool] = {}  # stages that have ended on their group; whether the group waits for more
        self._mailbox: Any = None

    def follow(self, running: Sequence[RunningStep] | None, slots: int) -> None:
        """Hand groups over in the order in which steps were handed out.

        The first steps, as far as the cluster's worker slots are enough for them, are next. A stage among them takes
        over a group that has nothing to do, or starts one. Any other stage waits while there is a group. A group that
        no stage is next for ends, so that its resources go to the other steps.

        Args:
            running: All steps that have been handed out and have not ended, in this order. None: from now on every
                stage has a group of its own.
            slots: Worker slots of the cluster.
        """
        with self._changed:
            self._running, self._slots = running, slots
            unfinished = {step.step_id for step in running or ()}
            self._trained = {stage: waits for stage, waits in self._trained.items() if stage in unfinished}
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
            self._trained.pop(stage, None)
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
            # The next stage may become ready by this one's record, which is written at once to a path. An upload takes
            # longer, and the group would hold its resources meanwhile.
            self._trained[stage] = job.store.cache is None
            self._release(stage, None if group.is_leaving else group)

    def _release(self, stage: str, usable: WorkerGroup | None = None) -> None:
        with self._changed:
            self._with_group.discard(stage)
            if usable is None:
                self._alive -= 1
            else:
                self._idle.append(usable)
            self._hand_over()

    def _take_or_start(self, stage: str, resources: Resources, start: StartGroup) -> WorkerGroup:
        while True:
            is_next = self._running is None or stage in self._next()[0]
            while is_next and self._idle:
                group = self._idle.pop()
                if group.shape == shape(resources) and not group.ended():
                    return group
                self._end(group)
            if is_next or not self._alive:
                self._alive += 1
                return WorkerGroup(resources, self._open_mailbox(), start)
            self._changed.wait()

    def _next(self) -> tuple[set[str], int]:
        """The stages that may have a group now, and the worker slots that remain."""
        free = self._slots
        stages: set[str] = set()
        for step in self._running or ():
            if step.step_id not in self._trained:
                free -= step.slots
                if free < 0:
                    return stages, 0
                if step.is_stage:
                    stages.add(step.step_id)
        return stages, free

    def _hand_over(self) -> None:
        """End the groups that no stage will take, and wake the stages that wait."""
        stages, free = self._next()
        while self._idle:
            may_follow = min(sum(self._trained.values()), free // self._idle[-1].workers)
            if len(self._idle) <= len(stages - self._with_group) + may_follow:
                break
            self._end(self._idle.pop())
        self._changed.notify_all()

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
