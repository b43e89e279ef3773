"""The loop between plan, store and executor, with an executor that only counts: each step runs exactly once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sacpo.errors import StepError
from sacpo.execution.in_process import InProcessRun
from sacpo.execution.job import Job
from sacpo.execution.runner import Runner
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.planning.records import StepResult
from sacpo.store.step_store import Store
from tests.jobs import empty_result
from tests.spaces import space


class Counting:
    """An executor that writes a file, counts calls, and fails the jobs for which `fails` is true."""

    def __init__(self, fails: Callable[[Job[Any]], bool] = lambda _: False) -> None:
        self.calls: Counter[str] = Counter()
        self.fails = fails
        self.lock = threading.Lock()

    def __call__(self, job: Job[Any]) -> StepResult:
        with job.staged_inputs():
            with self.lock:
                self.calls[job.step.id] += 1
            assert all((folder / "out").is_file() for folder in job.parents.values())
            if self.fails(job):
                raise StepError("diverged")
            time.sleep(0.005)
            (job.folder / "out").write_text(job.step.id)
        return empty_result(job.step.kind)


@pytest.fixture
def plan() -> Plan:
    return make_plan(space())


def finish(plan: Plan, runner: Runner) -> dict[str, str]:
    """Run all trials at once, and then the preview's steps; the error of each trial, empty if it ended well."""

    def ensure(steps: Iterable[str]) -> str:
        try:
            for step in steps:
                runner.ensure(step)
        except StepError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(plan.trials)) as pool:
        errors = list(pool.map(ensure, [plan.required_steps(t) for t in plan.trials]))
        list(pool.map(ensure, [t.likelihoods.values() for t in plan.trials]))
    return dict(zip((t.label for t in plan.trials), errors, strict=True))


def test_concurrent_trials_of_two_sweeps_run_every_step_once(plan: Plan, uri: str) -> None:
    count = Counting()
    sweeps = [Runner(plan, Store(uri), run, count) for run in ("one", "two")]
    with ThreadPoolExecutor(2) as pool:
        errors = list(pool.map(lambda runner: finish(plan, runner), sweeps))
    assert not any("".join(e.values()) for e in errors)
    assert set(count.calls.values()) == {1}
    assert set(count.calls) == set(plan.steps)


def test_a_done_step_does_not_rebuild_its_ancestors(plan: Plan, uri: str) -> None:
    count = Counting()
    store = Store(uri)
    finish(plan, Runner(plan, store, "one", count))
    policy = plan.trials[2].policy["policy"]
    store.files.remove(f"steps/{plan.trials[1].policy['policy']}/record.json")
    Runner(plan, store, "two", count).ensure(policy)
    assert set(count.calls.values()) == {1}


def test_a_damaged_parent_is_computed_again_before_its_child(plan: Plan, uri: str) -> None:
    count = Counting()
    store = Store(uri)
    finish(plan, Runner(plan, store, "one", count))
    first, last = plan.trials[1].policy["policy"], plan.trials[2].policy["policy"]
    record = store.record(first)
    assert record is not None
    output = f"steps/{first}/{record.output}"
    store.files.write(f"{output}/out", b"garbage")
    if store.cache is not None:
        store.cache.drop(output)  # as on a machine that did not write it
    store.files.remove(f"steps/{last}/record.json")
    Runner(plan, store, "two", count).ensure(last)
    repeated = {step: n for step, n in count.calls.items() if n > 1}
    assert repeated == {first: 2, last: 2}
    assert store.retractions(first)


def test_a_failure_fails_its_dependents_once_and_the_others_go_on(plan: Plan, uri: str) -> None:
    bad = next(t for t in plan.trials if t.method == "sacpo").policy["policy"]
    count = Counting(lambda job: job.step.id == bad)
    errors = finish(plan, Runner(plan, Store(uri), "one", count))
    assert errors["sft"] == errors["dpo:helpfulness@2"] == ""
    assert sum("diverged" in error for error in errors.values()) == 4  # the policy and its three merges
    assert count.calls[bad] == 1
    finish(plan, Runner(plan, Store(uri), "again", Counting()))  # another run tries it again
    assert Store(uri).record(bad) is not None


def test_a_run_in_the_calling_process_runs_every_step_once_in_the_order_of_the_schedule(plan: Plan, uri: str) -> None:
    count = Counting()
    store = Store(uri)
    targets = [step for trial in plan.trials for step in plan.target_steps(trial)]
    run = InProcessRun(Runner(plan, store, "one", count), targets)
    assert run.run() == {}
    assert set(run.resolved()) == set(plan.steps)
    order = list(count.calls)
    assert sorted(order) == sorted(plan.steps)
    assert all(order.index(p) < order.index(s) for s, step in plan.steps.items() for p in step.parents.values())
    assert InProcessRun(Runner(plan, store, "two", count), targets).run() == {}
    assert set(count.calls.values()) == {1}


def test_a_run_in_the_calling_process_skips_the_dependents_of_a_failed_step(plan: Plan, uri: str) -> None:
    bad = next(t for t in plan.trials if t.method == "sacpo").policy["policy"]
    count = Counting(lambda job: job.step.id == bad)
    targets = [step for trial in plan.trials for step in plan.target_steps(trial)]
    assert InProcessRun(Runner(plan, Store(uri), "one", count), targets).run() == {}
    dependents = {step for step in plan.steps if bad in plan.ancestors(step)}
    assert set(count.calls) == set(plan.steps) - dependents | {bad}
    assert set(count.calls.values()) == {1}
