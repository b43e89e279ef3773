"""The order in which steps are handed out, without a cluster."""

from __future__ import annotations

import pytest

from sacpo.planning.planner import make_plan
from sacpo.planning.schedule import Node, Schedule, nodes
from tests.spaces import space

CHAIN = {"a": Node((), 1, 1.0), "b": Node(("a",), 1, 1.0), "c": Node(("b",), 1, 1.0)}
SINGLES = {f"s{i}": Node((), 1, 1.0) for i in range(4)}


def schedule(nodes: dict[str, Node], capacity: int = 1) -> Schedule:
    return Schedule(nodes, nodes, set(), capacity, 1)


def drain(found: Schedule) -> list[str]:
    """What is handed out, one after the other, until there is nothing."""
    handed = []
    while (step := found.take(True) or found.take(False)) is not None:
        handed.append(step)
        found.finish(step, well=True)
    return handed


def test_the_longest_path_goes_first() -> None:
    assert drain(schedule(SINGLES | CHAIN)) == ["a", "b", "s0", "s1", "s2", "s3", "c"]


def test_no_more_at_once_than_there_is_room_for_and_light_steps_beside_them() -> None:
    found = schedule(SINGLES | {"light": Node((), 0, 0.1), "lighter": Node((), 0, 0.05)}, capacity=2)
    assert [found.take(True) for _ in range(3)] == ["s0", "s1", None]
    assert [found.take(False) for _ in range(2)] == ["light", None]
    found.finish("s0", well=True)
    assert found.take(True) == "s2"


def test_a_group_is_not_overtaken_until_it_never_starts() -> None:
    found = schedule({"small": Node((), 1, 99.0), "group": Node((), 2, 9.0), **SINGLES}, capacity=2)
    assert found.take(True) == "small"
    assert found.take(True) is None  # one place is free, and kept for the group
    found.finish("small", well=True)
    assert found.take(True) == "group"


def test_a_group_that_is_larger_than_the_room_of_the_moment_starts_alone() -> None:
    found = schedule({"group": Node((), 4, 9.0), **SINGLES}, capacity=2)
    assert found.take(True) == "group"
    assert found.take(True) is None


def test_a_failure_settles_what_needs_it_and_nothing_else() -> None:
    found = schedule(CHAIN | SINGLES)
    assert found.take(True) == "a"
    found.finish("a", well=False)
    assert found.over(CHAIN)
    assert not found.over()
    assert drain(found) == ["s0", "s1", "s2", "s3"]
    assert found.over()


def test_a_step_that_rests_leaves_its_place_and_is_up_again_when_offered() -> None:
    found = schedule(SINGLES)
    assert found.take(True) == "s0"
    found.rest("s0")
    assert drain(found) == ["s1", "s2", "s3"]
    found.offer("s0")
    found.offer("s0")  # once more does no harm
    assert drain(found) == ["s0"]


def test_what_only_done_steps_need_is_not_done_again() -> None:
    assert drain(Schedule(CHAIN, CHAIN, {"b"}, 1, 1)) == ["a", "c"]  # `a` is wanted itself
    assert drain(Schedule(CHAIN, ["c"], {"b"}, 1, 1)) == ["c"]


def test_canaries_come_before_any_policy_trains_and_the_baseline_against_itself_before_the_rest() -> None:
    plan = make_plan(space())
    order = drain(Schedule(nodes(plan), [s for t in plan.trials for s in plan.required_steps(t)], set(), 9, 9))
    assert sorted(order) == sorted(plan.steps)
    trained = [i for i, step in enumerate(order) if plan.steps[step].kind == "train"]
    assert max(order.index(step) for step in plan.canaries) < trained[0]
    assert trained[0] < max(order.index(step) for step in plan.baseline.judge.values()) < trained[1]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_step_holds_what_its_worker_group_holds(workers: int) -> None:
    plan = make_plan(space(resources__workers=workers))
    held = {plan.steps[step].kind: node.held for step, node in nodes(plan).items()}
    alone = {"generate": 1, "probabilities": 1, "model": 1, "judge": 0, "canary": 0, "data": 0}
    assert held.items() >= ({"train": workers, "reference": workers} | alone).items()
