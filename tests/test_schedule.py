"""The order in which steps are handed out, without a cluster."""

from __future__ import annotations

import pytest

from sacpo.planning.planner import make_plan
from sacpo.planning.schedule import Pool, Schedule, ScheduledStep, scheduled_steps
from tests.spaces import space

CHAIN = {
    "a": ScheduledStep((), 1, 1.0),
    "b": ScheduledStep(("a",), 1, 1.0),
    "c": ScheduledStep(("b",), 1, 1.0),
}
SINGLES = {f"s{i}": ScheduledStep((), 1, 1.0) for i in range(4)}


def new_schedule(steps: dict[str, ScheduledStep], worker_slots: int = 1) -> Schedule:
    """A schedule whose targets are all steps, with one driver-side step at a time."""
    return Schedule(steps, steps, set(), worker_slots, 1)


def drain(schedule: Schedule) -> list[str]:
    """The steps in the order in which they are handed out, if each succeeds before the next one starts."""
    order = []
    while (step := schedule.pop_ready(Pool.WORKERS) or schedule.pop_ready(Pool.DRIVER)) is not None:
        order.append(step)
        schedule.finish(step, succeeded=True)
    return order


def test_the_longest_path_goes_first() -> None:
    assert drain(new_schedule(SINGLES | CHAIN)) == ["a", "b", "s0", "s1", "s2", "s3", "c"]


def test_steps_start_up_to_the_limit_of_each_pool() -> None:
    driver_steps = {"light": ScheduledStep((), 0, 0.1), "lighter": ScheduledStep((), 0, 0.05)}
    schedule = new_schedule(SINGLES | driver_steps, worker_slots=2)
    assert [schedule.pop_ready(Pool.WORKERS) for _ in range(3)] == ["s0", "s1", None]
    assert [schedule.pop_ready(Pool.DRIVER) for _ in range(2)] == ["light", None]
    schedule.finish("s0", succeeded=True)
    assert schedule.pop_ready(Pool.WORKERS) == "s2"


def test_a_worker_group_is_not_overtaken_by_smaller_steps() -> None:
    large = {"small": ScheduledStep((), 1, 99.0), "group": ScheduledStep((), 2, 9.0)}
    schedule = new_schedule(large | SINGLES, worker_slots=2)
    assert schedule.pop_ready(Pool.WORKERS) == "small"
    assert schedule.pop_ready(Pool.WORKERS) is None  # the free slot is kept for the group
    schedule.finish("small", succeeded=True)
    assert schedule.pop_ready(Pool.WORKERS) == "group"


def test_a_worker_group_larger_than_the_cluster_of_the_moment_starts_alone() -> None:
    schedule = new_schedule({"group": ScheduledStep((), 4, 9.0), **SINGLES}, worker_slots=2)
    assert schedule.pop_ready(Pool.WORKERS) == "group"
    assert schedule.pop_ready(Pool.WORKERS) is None


def test_a_failure_resolves_the_steps_that_depend_on_it_and_no_others() -> None:
    schedule = new_schedule(CHAIN | SINGLES)
    assert schedule.pop_ready(Pool.WORKERS) == "a"
    schedule.finish("a", succeeded=False)
    assert schedule.is_finished(CHAIN)
    assert not schedule.is_finished()
    assert drain(schedule) == ["s0", "s1", "s2", "s3"]
    assert schedule.is_finished()


def test_the_upcoming_stages_wait_for_no_stage_but_running_ones() -> None:
    chain = CHAIN | {"reference": ScheduledStep(("b",), 2, 1.0), "d": ScheduledStep(("b", "reference"), 1, 1.0)}
    stages, schedule = ["a", "b", "d", "e"], new_schedule(chain | {"e": ScheduledStep(("d",), 1, 1.0)})
    assert schedule.upcoming(stages, limit=9) == [set()], "a is ready"
    assert schedule.pop_ready(Pool.WORKERS) == "a"
    assert schedule.upcoming(stages, limit=9) == [{"a"}], "b follows a; d and e wait for b"
    schedule.finish("a", succeeded=True)
    assert schedule.pop_ready(Pool.WORKERS) == "b"
    schedule.finish("b", succeeded=True)
    assert schedule.pop_ready(Pool.WORKERS) == "reference"
    assert schedule.upcoming(stages, limit=9) == [set()], "d waits for its reference, which is no stage"
    assert schedule.upcoming(stages, limit=0) == []


def test_a_suspended_step_frees_its_slot_and_is_ready_again_after_requeue() -> None:
    schedule = new_schedule(SINGLES)
    assert schedule.pop_ready(Pool.WORKERS) == "s0"
    schedule.suspend("s0")
    assert drain(schedule) == ["s1", "s2", "s3"]
    schedule.requeue("s0")
    schedule.requeue("s0")  # a second call changes nothing
    assert drain(schedule) == ["s0"]


def test_steps_that_only_done_steps_depend_on_are_not_repeated() -> None:
    assert drain(Schedule(CHAIN, CHAIN, {"b"}, 1, 1)) == ["a", "c"]  # `a` is a target itself
    assert drain(Schedule(CHAIN, ["c"], {"b"}, 1, 1)) == ["c"]


def test_canaries_come_before_any_training_and_the_a_a_test_before_all_stages_after_sft() -> None:
    plan = make_plan(space())
    targets = [step for trial in plan.trials for step in plan.target_steps(trial)]
    order = drain(Schedule(scheduled_steps(plan), targets, set(), 9, 9))
    assert sorted(order) == sorted(plan.steps)
    trained = [i for i, step in enumerate(order) if plan.steps[step].kind == "train"]
    assert max(order.index(step) for step in plan.canaries) < trained[0]
    assert trained[0] < max(order.index(step) for step in plan.baseline.judge.values()) < trained[1]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_step_holds_the_worker_slots_of_its_kind(workers: int) -> None:
    plan = make_plan(space(resources__workers=workers))
    slots = {plan.steps[step_id].kind: step.slots for step_id, step in scheduled_steps(plan).items()}
    fixed = {"generate": 1, "probabilities": 1, "model": 1, "judge": 0, "canary": 0, "data": 0}
    assert slots.items() >= ({"train": workers, "reference": workers} | fixed).items()
