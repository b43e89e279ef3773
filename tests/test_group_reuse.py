"""Which stage takes over which worker group, and the checkpoints of a group, without Ray."""

from __future__ import annotations

import asyncio
import json
import os
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest

from sacpo.cluster import checkpoints, worker_groups
from sacpo.cluster.checkpoints import LATEST, DamagedCheckpoint, GroupCheckpoints
from sacpo.cluster.mailbox import Mailbox
from sacpo.cluster.worker_groups import RunningStep, StageEnd, WorkerGroups
from tests.jobs import empty_result, job, step, synthetic_model

A, B, TASK = RunningStep("a", 2, True), RunningStep("b", 2, True), RunningStep("task", 2, False)
END = StageEnd(empty_result("model"), "node", is_leaving=False)


class Groups(WorkerGroups):
    """Worker groups without processes: they start, train and end when the test says so. It is its own mailbox."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.post = SimpleNamespace(remote=self._post)
        self.folder = folder
        self.trained: Queue[tuple[str, str]] = Queue()  # (stage, group) in the order in which stages began
        self.stages: defaultdict[str, Future[StageEnd]] = defaultdict(Future)
        self.groups: defaultdict[str, Future[None]] = defaultdict(Future)
        self._threads = ThreadPoolExecutor(4)

    def _open_mailbox(self) -> Any:
        return self

    def _post(self, group: str, _: int, job: Any, workers: int) -> Any:
        assert workers == 2
        if job is None:
            self.groups[group].set_result(None)
        else:
            self.trained.put((job.step.id, group))
        return SimpleNamespace(future=lambda: self.stages[job.step.id])

    def ask(self, stage: str) -> Future[StageEnd]:
        """Ask for a stage to be trained."""
        asked = replace(job(self.folder, "model", synthetic_model(), workers=2), step=step(stage))
        return self._threads.submit(self._train, asked)

    def _train(self, asked: Any) -> StageEnd:
        with self.group(asked, lambda _, group: self.groups[group].result(60)) as group:
            return group.train(asked)

    def begin(self, stage: str) -> tuple[Future[StageEnd], str]:
        """Ask for a stage and wait until it begins; its end, and its group."""
        end = self.ask(stage)
        began, group = self.trained.get(timeout=60)
        assert began == stage
        return end, group

    def finish(self, stage: str, end: Future[StageEnd], result: StageEnd = END) -> None:
        """End a stage."""
        self.stages[stage].set_result(result)
        assert end.result(60) == result


@pytest.fixture
def groups(tmp_path: Path) -> Groups:
    return Groups(tmp_path)


def test_the_next_stage_takes_the_group_over(groups: Groups) -> None:
    groups.follow([A, B], slots=2)
    end, group = groups.begin("a")
    waiting = groups.ask("b")
    assert groups.trained.empty(), "there is no room for a second group"
    groups.finish("a", end)
    assert groups.trained.get(timeout=60) == ("b", group)
    groups.follow([B], 2, upcoming=[{"b"}])
    groups.finish("b", waiting)
    assert not groups.groups[group].done(), "the record of b makes another stage ready"
    groups.follow([], slots=2)
    assert groups.groups[group].done(), "no stage is next"


def test_a_step_that_comes_before_the_stage_gets_the_resources(groups: Groups) -> None:
    groups.follow([A, TASK], slots=2)
    end, group = groups.begin("a")
    groups.finish("a", end)
    assert groups.groups[group].done()
    groups.follow([TASK, B], slots=2)
    assert groups.begin("b")[1] != group


def test_two_stages_for_which_there_is_room_have_a_group_each(groups: Groups) -> None:
    groups.follow([A, B], slots=4)
    (end, first), (_, second) = groups.begin("a"), groups.begin("b")
    assert first != second
    groups.finish("a", end)
    groups.follow([B], slots=4)
    assert groups.groups[first].done()
    assert not groups.groups[second].done()


def test_a_group_waits_for_a_stage_while_the_steps_before_it_are_carried_out_beside_it(groups: Groups) -> None:
    groups.follow([A], slots=4, upcoming=[{"a"}])
    end, group = groups.begin("a")
    groups.finish("a", end)
    groups.follow([TASK], slots=4, upcoming=[set()])
    groups.follow([TASK, replace(TASK, step_id="a task that fills the cluster"), B], slots=4)
    assert groups.begin("b")[1] == group


@pytest.mark.parametrize(
    ("slots", "upcoming"),
    [(3, [set[str]()]), (4, [{"another stage that runs"}]), (4, list[set[str]]())],
    ids=["no room", "another stage first", "no stage"],
)
def test_a_group_does_not_wait_in_vain(groups: Groups, slots: int, upcoming: list[set[str]]) -> None:
    groups.follow([A], slots, upcoming)
    end, group = groups.begin("a")
    groups.finish("a", end)
    groups.follow([TASK], slots, upcoming)
    assert groups.groups[group].done()


def test_a_group_waits_no_longer_than_a_new_one_takes_to_start(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_groups, "WAIT_S", 0.01)
    groups.follow([A], slots=4, upcoming=[{"a"}])
    end, group = groups.begin("a")
    groups.finish("a", end)
    groups.groups[group].result(60)
    groups.follow([TASK, B], slots=4)
    assert groups.begin("b")[1] != group


def test_a_group_that_loses_a_machine_takes_no_further_stage(groups: Groups) -> None:
    groups.follow([A, B], slots=2)
    end, group = groups.begin("a")
    groups.finish("a", end, replace(END, is_leaving=True))
    assert groups.begin("b")[1] != group


def test_a_stage_that_fails_ends_its_group_and_another_attempt_has_a_new_one(groups: Groups) -> None:
    groups.follow([A], slots=2)
    end, group = groups.begin("a")
    groups.groups[group].set_exception(ValueError("the reason"))
    with pytest.raises(ValueError, match="the reason"):
        end.result(60)
    assert groups.begin("a")[1] != group


def test_without_a_dispatcher_every_stage_has_a_group_of_its_own(groups: Groups) -> None:
    end, group = groups.begin("a")
    groups.finish("a", end)
    assert groups.groups[group].done()
    assert groups.begin("b")[1] != group


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stage on two workers; `save(update)` has both save a checkpoint."""
    asked = job(tmp_path / "job", "model", synthetic_model(), workers=2)
    workers = [GroupCheckpoints(asked, rank, 2) for rank in (1, 0)]
    monkeypatch.setattr(checkpoints, "barrier", lambda: None)

    def save(update: int) -> None:
        for rank, worker in enumerate(workers):
            part = tmp_path / f"part-{update}-{rank}"
            part.mkdir()
            (part / f"weights-{rank}").write_text(f"{update} {rank}")
            worker.keep(part, update)

    return SimpleNamespace(
        save=save,
        worker=workers[0],
        job=asked,
        folder=Path(asked.store.checkpoint_uri(asked.step.id)) / "zero3-2",
        into=tmp_path / "into",
    )


def test_the_latest_checkpoint_of_a_group_has_the_parts_of_all_workers_and_replaces_the_others(stage: Any) -> None:
    assert stage.worker.latest(stage.into) is None
    for update in (8, 16):
        stage.save(update)
    assert json.loads((stage.folder / LATEST).read_text()) == {"update": 16}
    assert sorted(path.name for path in stage.folder.iterdir()) == ["16", LATEST]
    folder = stage.worker.latest(stage.into)
    assert [(folder / f"weights-{rank}").read_text() for rank in (0, 1)] == ["16 0", "16 1"]
    assert GroupCheckpoints(stage.job, 0, 3).latest(stage.into) is None, "a group of another size starts again"


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        ("16/weights-1", "weights-1 has 2 bytes instead of 4"),
        ("16/sizes-0.json", "the checkpoint is damaged"),
        (LATEST, f"{LATEST} of the checkpoints is damaged"),
    ],
)
def test_a_damaged_checkpoint_of_a_group_is_refused(stage: Any, damaged: str, reason: str) -> None:
    stage.save(16)
    path = stage.folder / damaged
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DamagedCheckpoint, match=reason):
        stage.worker.latest(stage.into)


def test_a_checkpoint_without_the_part_of_a_worker_is_refused(stage: Any) -> None:
    stage.save(16)
    (stage.folder / "16" / "sizes-1.json").unlink()
    with pytest.raises(DamagedCheckpoint, match="the parts of 1 of 2 workers"):
        stage.worker.latest(stage.into)


def test_workers_that_start_again_take_the_stage_that_the_others_had() -> None:
    """Ray Train starts the workers of a group again after a notice, and after the death of its controller."""

    async def main() -> tuple[Any, ...]:
        mailbox = Mailbox()
        first = asyncio.create_task(mailbox.post("group", 0, "first job", 2))
        assert [await mailbox.take("group", 0, rank) for rank in (0, 1)] == [(0, "first job")] * 2
        await asyncio.gather(*(mailbox.give_back("group", 0, rank, f"first {rank}") for rank in (0, 1)))
        second = asyncio.create_task(mailbox.post("group", 1, "second job", 2))
        assert await mailbox.take("group", 1, 0) == (1, "second job")
        await mailbox.give_back("group", 1, 0, "of a worker that is lost")
        assert [await mailbox.take("group", 0, rank) for rank in (0, 1)] == [(1, "second job")] * 2
        await mailbox.give_back("group", 1, 1, "second 1")
        assert not second.done()
        await mailbox.give_back("group", 1, 0, "second 0")
        await mailbox.give_back("group", 1, 0, "late")
        return await first, await second

    assert asyncio.run(asyncio.wait_for(main(), 60)) == ("first 0", "second 0")
