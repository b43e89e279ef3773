"""Trials on a real cluster, with steps that only take a while: who carries what out when somebody dies or is faster."""

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
from pathlib import Path
from typing import Any

import pytest
import ray

from sacpo.cluster import tuner
from sacpo.errors import StepError
from sacpo.execution.job import Facts, Job
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.store.step_store import Store
from tests.spaces import space

pytestmark = pytest.mark.usefixtures("ray_cluster")


def slow(kind: str, job: Job) -> dict[str, Any]:
    """A step that leaves a mark of each try, takes a while, and fails if the store's folder says so."""
    marks = job.ledger.parent / "marks"
    marks.mkdir(exist_ok=True)
    (marks / f"{job.step_id} {uuid.uuid4().hex}").touch()
    time.sleep(0.2)
    if (job.ledger.parent / f"fail {job.step_id}").exists():
        raise StepError("told to fail")
    return Facts().as_record()


def tries(store: Store) -> Counter[str]:
    return Counter(path.name.partition(" ")[0] for path in (Path(store.uri) / "marks").iterdir())


def shown(state: str) -> float | None:
    """What Prometheus would read, once Ray has handed on what the sweep has told it last."""
    address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    time.sleep(15)
    page = urllib.request.urlopen(address, timeout=10).read().decode()
    found = re.findall(rf'^ray_sacpo_steps{{[^}}]*State="{state}"[^}}]*}} ([0-9.]+)$', page, re.M | re.I)
    return float(found[-1]) if found else None


@pytest.fixture
def plan() -> Plan:
    return make_plan(space())


def run(plan: Plan, store: Store) -> threading.Thread:
    thread = threading.Thread(
        target=tuner.run_trials, args=(plan, store, "run", Path(store.uri) / "tune", slow), daemon=True
    )
    thread.start()
    return thread


def holder(plan: Plan, store: Store, kinds: tuple[str, ...], timeout: float = 100.0) -> int:
    """The process that is at a step of one of these kinds now."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for step, found in plan.steps.items():
            claim = store.folder(step) / "attempts" / "0001.claim"
            if found.kind in kinds and claim.exists() and store.record(step) is None:
                return int(json.loads(claim.read_bytes())["pid"])
        time.sleep(0.02)
    raise AssertionError("nobody")


@pytest.mark.parametrize("kinds", [("generate", "train"), ("judge", "data")], ids=["dispatcher", "trial"])
def test_after_a_kill_every_step_is_done_and_none_that_was_done_again(
    kinds: tuple[str, ...], plan: Plan, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    thread = run(plan, store)
    victim = holder(plan, store, kinds)
    before = {step for step in plan.steps if store.record(step) is not None}
    os.kill(victim, signal.SIGKILL)
    thread.join(200)
    assert not thread.is_alive()
    assert all(store.record(step) is not None for step in plan.steps)
    found = tries(store)
    assert all(found[step] == 1 for step in before)
    assert sum(found.values()) <= len(plan.steps) + 3  # what the victim was at


def test_a_step_that_another_sweep_is_at_is_waited_for_and_not_done_again(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    theirs = plan.steps[plan.trials[1].generate["helpfulness"]]
    claim = store.claim(theirs, "another sweep")
    assert claim is not None
    thread = run(plan, store)
    deadline = time.monotonic() + 200
    while sum(store.record(step) is None for step in plan.steps) > 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert {plan.steps[s].kind for s in plan.steps if store.record(s) is None} == {"generate", "judge"}
    left = sum(store.record(step) is None for step in plan.steps)
    assert shown("done") == len(plan.steps) - left
    assert shown("failed") == 0
    claim.commit(Facts().as_record())
    thread.join(100)
    assert not thread.is_alive()
    assert tries(store)[theirs.id] == 0
    assert all(store.record(step) is not None for step in plan.steps)


def test_a_store_that_is_out_of_reach_for_a_while_costs_time_only(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    hidden = tmp_path / "steps" / plan.trials[2].policy["policy"]
    hidden.parent.mkdir()
    hidden.write_text("in the way of the step's folder")
    thread = run(plan, store)
    deadline = time.monotonic() + 100
    while store.record(plan.trials[1].policy["policy"]) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(2.0)
    hidden.unlink()
    thread.join(200)
    assert not thread.is_alive()
    assert all(store.record(step) is not None for step in plan.steps)


def test_a_failure_ends_what_needs_it_and_the_rest_is_done(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    bad = next(t for t in plan.trials if t.method == "sacpo").policy["policy"]
    (tmp_path / f"fail {bad}").touch()
    thread = run(plan, store)
    thread.join(200)
    assert not thread.is_alive()
    needing = {step for step in plan.steps if bad in plan.ancestors(step)}
    assert {step for step in plan.steps if store.record(step) is None} == needing
    assert len(needing) > 4
    assert tries(store)[bad] == 1


def test_a_trial_of_which_nothing_is_left_is_not_started(plan: Plan, tmp_path: Path) -> None:
    store = Store(tmp_path)
    run(plan, store).join(200)
    last = plan.trials[-1]
    store.retract(last.judge["helpfulness"], "for this test")
    tuner.run_trials(plan, store, "again", tmp_path / "tune", slow, left=[last.trial_id])
    assert len(list((tmp_path / "tune" / "again").glob("_trial_*"))) == 1
    assert tries(store) == Counter(list(plan.steps)) + Counter([last.judge["helpfulness"]])
