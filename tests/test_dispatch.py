"""Trials on a real cluster, with steps that only take a while: which process carries out which step, and what happens
when one of them dies, another sweep holds a step, or the store is out of reach."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from sacpo.cluster import tuner
from sacpo.errors import ClusterError, StepError
from sacpo.execution.job import Job
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.planning.records import StepResult
from sacpo.store.step_store import Store
from tests.jobs import empty_result
from tests.spaces import space

pytestmark = pytest.mark.usefixtures("ray_cluster")


def carry_out_slowly(job: Job[Any]) -> StepResult:
    """An executor that leaves a mark for each attempt, takes a while, and fails the steps that a file names."""
    root = Path(job.store.uri)
    (root / "marks").mkdir(exist_ok=True)
    (root / "marks" / f"{job.step.id} {uuid.uuid4().hex}").touch()
    time.sleep(0.2)
    if (root / f"fail {job.step.id}").exists():
        raise StepError("fails as requested")
    return empty_result(job.step.kind)


def attempts(store: Store) -> Counter[str]:
    """How often each step was carried out."""
    return Counter(path.name.partition(" ")[0] for path in (Path(store.uri) / "marks").iterdir())


def unfinished(plan: Plan, store: Store) -> set[str]:
    """The steps that have no record."""
    return plan.steps.keys() - store.records(plan.steps).keys()


def metric(state: str) -> float | None:
    """Value of the metric `ray_sacpo_steps` for a state, as Prometheus reads it; None if it is not there."""
    address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    page = urllib.request.urlopen(address, timeout=10).read().decode()
    values = re.findall(rf'^ray_sacpo_steps{{[^}}]*State="{state}"[^}}]*}} ([0-9.]+)$', page, re.M | re.I)
    return float(values[-1]) if values else None


def wait_until(condition: Callable[[], Any], timeout: float = 200.0) -> Any:
    """Wait for a condition; returns its value, which is true."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)
    return value


@pytest.fixture
def plan() -> Plan:
    """The plan of the small space."""
    return make_plan(space())


def start(plan: Plan, store: Store) -> threading.Thread:
    """Run all trials in the background."""
    folder = Path(store.uri) / "tune"
    thread = threading.Thread(target=tuner.run_trials, args=(plan, store, "run", folder, carry_out_slowly), daemon=True)
    thread.start()
    return thread


def join(thread: threading.Thread) -> None:
    """Wait for the trials' end."""
    thread.join(200)
    assert not thread.is_alive()


def holder(plan: Plan, store: Store, kinds: tuple[str, ...]) -> int:
    """Process id of a process that carries out a step of one of these kinds at this moment."""

    def pid() -> int | None:
        for step_id, step in plan.steps.items():
            claim = store.step_dir(step_id) / "attempts" / "0001.claim"
            if step.kind in kinds and claim.exists() and store.record(step_id) is None:
                return int(json.loads(claim.read_bytes())["pid"])
        return None

    return int(wait_until(pid))


@pytest.mark.parametrize("kinds", [("generate", "train"), ("judge", "data")], ids=["dispatcher", "trial"])
def test_after_a_kill_the_remaining_steps_are_carried_out_and_no_done_step_is_repeated(
    kinds: tuple[str, ...], plan: Plan, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    thread = start(plan, store)
    victim = holder(plan, store, kinds)
    done = set(store.records(plan.steps))
    os.kill(victim, signal.SIGKILL)
    join(thread)
    assert not unfinished(plan, store)
    counts = attempts(store)
    assert all(counts[step] == 1 for step in done)
    assert sum(counts.values()) <= len(plan.steps) + 3  # the steps that the victim was carrying out


def test_a_step_that_another_sweep_holds_is_waited_for_and_not_repeated(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    held = plan.steps[plan.trials[1].generate["helpfulness"]]
    claim = store.claim(held, "another sweep")
    assert claim is not None
    thread = start(plan, store)
    remaining = {step for step in plan.steps if held.id in plan.ancestors(step)}
    assert {plan.steps[step].kind for step in remaining} == {"generate", "judge", "likelihoods"}
    wait_until(lambda: unfinished(plan, store) == remaining)
    # Ray exports metrics every few seconds.
    wait_until(lambda: metric("done") == len(plan.steps) - len(remaining), timeout=60)
    assert metric("failed") == 0
    claim.commit(empty_result(held.kind))
    join(thread)
    assert attempts(store)[held.id] == 0
    assert not unfinished(plan, store)


def test_a_step_whose_store_is_out_of_reach_for_a_while_is_carried_out_afterwards(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    blocked = plan.trials[2].policy["policy"]
    obstacle = tmp_path / "steps" / blocked
    obstacle.parent.mkdir()
    obstacle.write_text("a file where the step's folder should be")
    thread = start(plan, store)
    dependents = {step for step in plan.steps if blocked in plan.ancestors(step)}
    wait_until(lambda: unfinished(plan, store) == dependents)
    obstacle.unlink()
    join(thread)
    assert not unfinished(plan, store)


def test_a_failure_fails_the_dependents_and_the_other_steps_are_carried_out(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    bad = next(t for t in plan.trials if t.method == "sacpo").policy["policy"]
    (tmp_path / f"fail {bad}").touch()
    join(start(plan, store))
    dependents = {step for step in plan.steps if bad in plan.ancestors(step)}
    assert unfinished(plan, store) == dependents
    assert len(dependents) > 4
    assert attempts(store)[bad] == 1


def test_a_trial_without_remaining_steps_is_not_started(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    join(start(plan, store))
    last = plan.trials[-1]
    store.retract(last.judge["helpfulness"], "for this test")
    tuner.run_trials(plan, store, "again", tmp_path / "tune", carry_out_slowly, trial_ids=[last.trial_id])
    assert len(list((tmp_path / "tune" / "again").glob("_trial_*"))) == 1
    assert attempts(store) == Counter(list(plan.steps)) + Counter([last.judge["helpfulness"]])


def test_a_trial_that_can_never_fit_is_refused() -> None:
    """`tests.test_sweep_run` has the command, which ends with 2 before any work."""
    with pytest.raises(ClusterError, match="needs 64 workers with 4 CPU each, and the cluster has"):
        tuner.capacity(make_plan(space(resources__workers=64, resources__cpus_per_worker=4)))
