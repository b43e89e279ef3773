"""The loop between plan, store and executor, with an executor that only counts: who carries what out, and how often."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sacpo.errors import StepError
from sacpo.execution.job import Facts, Job
from sacpo.execution.runner import Runner
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.store.step_store import Store
from tests.spaces import space


class Counting:
    """An executor that writes a file, counts calls, and fails where it is told to."""

    def __init__(self, fails: Callable[[str, Job], bool] = lambda *_: False) -> None:
        self.calls: Counter[str] = Counter()
        self.fails = fails
        self.lock = threading.Lock()

    def __call__(self, kind: str, job: Job) -> dict[str, Any]:
        with job.staged_inputs():
            with self.lock:
                self.calls[job.step_id] += 1
            assert all((folder / "out").is_file() for folder in job.parents.values())
            if self.fails(kind, job):
                raise StepError("diverged")
            time.sleep(0.005)
            (job.folder / "out").write_text(job.step_id)
        return Facts().as_record()


@pytest.fixture
def plan() -> Plan:
    return make_plan(space())


def finish(plan: Plan, runner: Runner) -> dict[str, str]:
    """Run all trials at once; the error of each, empty if it ended well."""

    def trial(steps: tuple[str, ...]) -> str:
        try:
            for step in steps:
                runner.ensure(step)
        except StepError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(plan.trials)) as pool:
        ended = pool.map(trial, [plan.required_steps(t) for t in plan.trials])
    return dict(zip((t.label for t in plan.trials), ended, strict=True))


def test_concurrent_trials_of_two_sweeps_carry_every_step_out_once(plan: Plan, uri: str) -> None:
    count = Counting()
    sweeps = [Runner(plan, Store(uri), run, count) for run in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda runner: finish(plan, runner), sweeps))
    assert not any("".join(e.values()) for e in ended)
    assert set(count.calls.values()) == {1}
    assert set(count.calls) == set(plan.steps)


def test_a_done_step_does_not_rebuild_what_it_came_from(plan: Plan, uri: str) -> None:
    count = Counting()
    store = Store(uri)
    finish(plan, Runner(plan, store, "one", count))
    policy = plan.trials[2].policy["policy"]
    store.files.remove(f"steps/{plan.trials[1].policy['policy']}/record.json")
    Runner(plan, store, "two", count).ensure(policy)
    assert set(count.calls.values()) == {1}


def test_a_damaged_parent_is_computed_again_before_what_needs_it(plan: Plan, uri: str) -> None:
    count = Counting()
    store = Store(uri)
    finish(plan, Runner(plan, store, "one", count))
    first, last = plan.trials[1].policy["policy"], plan.trials[2].policy["policy"]
    output = f"steps/{first}/{(store.record(first) or {})['output']}"
    store.files.write(f"{output}/out", b"garbage")
    if store.cache is not None:
        store.cache.drop(output)  # another machine than the one that wrote it
    store.files.remove(f"steps/{last}/record.json")
    Runner(plan, store, "two", count).ensure(last)
    again = {step: n for step, n in count.calls.items() if n > 1}
    assert again == {first: 2, last: 2}
    assert store.retractions(first)


def test_a_failure_fails_what_needs_it_once_and_the_rest_goes_on(plan: Plan, uri: str) -> None:
    bad = next(t for t in plan.trials if t.method == "sacpo").policy["policy"]
    count = Counting(lambda _, job: job.step_id == bad)
    ended = finish(plan, Runner(plan, Store(uri), "one", count))
    assert ended["sft"] == ended["dpo:helpfulness@2"] == ""
    assert sum("diverged" in error for error in ended.values()) == 4  # the policy and its three merges
    assert count.calls[bad] == 1
    finish(plan, Runner(plan, Store(uri), "again", Counting()))  # another run tries it again
    assert Store(uri).record(bad) is not None
