"""Expected durations of steps: from like steps, of this sweep or of others in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from sacpo import sweep
from sacpo.planning.durations import Durations, TimedStep, remaining_steps
from sacpo.planning.kinds import KINDS
from sacpo.planning.payloads import hashed
from sacpo.planning.planner import make_plan
from sacpo.results.kept_plan import read_kept_plan
from sacpo.store.past_steps import past_steps
from sacpo.store.step_store import Store
from tests.commands import call, write_space
from tests.spaces import small, space


def test_the_like_step_counts_and_the_longest_chain_is_a_lower_bound() -> None:
    plan = make_plan(space())
    trained = [step for step in plan.steps.values() if step.kind == "train"]
    payloads = {str(hashed(step.payload)): step for step in trained}
    first, second, *_ = payloads.values()
    timed = [TimedStep("train", hashed(first.payload), 30.0), TimedStep("train", hashed(second.payload), 90.0)]
    durations = Durations(timed)
    assert (durations.seconds(first), durations.seconds(second)) == (30.0, 90.0)
    judge = next(step for step in plan.steps.values() if step.kind == "judge")
    assert durations.seconds(judge) == pytest.approx(60 * KINDS["judge"].cost / KINDS["train"].cost)
    assert Durations([]).seconds(first) == 0
    whole = remaining_steps(plan, {}, timed)
    assert 90 <= whole.chain < whole.work
    assert remaining_steps(plan, {}, timed, failed=plan.steps).work == 0
    assert whole.seconds_left(0, 10, 10) is None
    assert whole.seconds_left(done=20, running=0, elapsed=10) == max(whole.chain, whole.work / 2)


def test_a_dry_run_tells_the_time_from_another_sweeps_steps(in_process_results: Path, tmp_path: Path) -> None:
    store, plan = Store(in_process_results / "store"), read_kept_plan(in_process_results)
    assert {step.kind for step in past_steps(store, plan)} == {step.kind for step in plan.steps.values()}
    other = write_space(small(training__dpo__learning_rate=0.002), tmp_path)
    answer = call(sweep.main, str(other), "--dry-run", "--store", store.uri, "--results", str(tmp_path / "results"))
    assert "time of the remaining steps: about" in answer.stdout
    empty = call(sweep.main, str(other), "--dry-run", "--results", str(tmp_path / "results"))
    assert "time of the remaining" not in empty.stdout
