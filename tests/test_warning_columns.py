"""A policy that did not move, or whose answers do not end, is shown in a warning and is no candidate for the front."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sacpo import report, results, sweep
from sacpo.planning.payloads import SFTPayload
from sacpo.planning.planner import make_plan
from sacpo.results.kept_plan import read_kept_plan
from sacpo.results.warning_columns import parent_trial
from sacpo.steps.course import Course
from tests.commands import write_space
from tests.spaces import small, space


def test_a_stage_that_changes_nothing_is_a_warning_and_off_the_front(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = small(
        training__dpo__learning_rate=1e-12, evaluation__generation__max_new_tokens=1, merges=[], name="unmoved"
    )
    command = [str(write_space(data, tmp_path)), "--results", str(tmp_path / "results"), "--address", "in-process"]
    assert sweep.main(command) == 0
    text = capfd.readouterr().out
    trials = results.load(tmp_path / "results").trials.set_index("label")
    stages = trials[trials["method"].isin(["one-step", "sacpo"])]
    assert (stages["identical_to_parent"] == 1.0).all()
    assert not stages["on_front"].any()
    assert stages["warnings"].str.contains("100% of the answers are its parent policy's").all()
    assert stages["warnings"].str.contains("the loss did not move").all()
    assert (trials.loc["sft", "finished_fraction"], trials.loc["always-refuse", "finished_fraction"]) == (0.0, 1.0)
    assert "100% of the answers ran into evaluation.generation.max_new_tokens" in trials.loc["sft", "warnings"]
    assert "WARNING" in text
    assert "its parent policy's" in text
    assert "Warnings" in (tmp_path / "results" / "report.html").read_text()


@pytest.mark.parametrize(("losses", "moved"), [([0.693, 0.6931, 0.693], False), ([0.693, 0.68], True), ([0.693], True)])
def test_a_loss_that_stays_where_it_was_has_not_moved(losses: list[float], moved: bool) -> None:
    plan = make_plan(space())
    payload = plan.steps[plan.baseline.policy["policy"]].payload
    assert isinstance(payload, SFTPayload)
    course = Course.of([{"loss": loss} for loss in losses], payload)
    assert course.loss_moved is moved
    assert any("the loss did not move" in warning for warning in course.warnings) is not moved


def test_an_unmoved_loss_keeps_a_trial_off_the_front_whose_answers_differ_from_its_parents(copied: Path) -> None:
    """Sampled answers can differ where the weights hardly do."""
    before = results.load(copied).trials
    stage = before[before["method"].isin(["one-step", "sacpo"]) & before["on_front"]].iloc[0]
    assert stage["identical_to_parent"] < 0.95
    (trial,) = (trial for trial in read_kept_plan(copied).trials if trial.trial_id == stage["trial_id"])
    record = copied / "store" / "steps" / trial.policy["policy"] / "record.json"
    content = json.loads(record.read_text())
    content["metrics"]["loss_moved"] = False
    record.write_text(json.dumps(content))
    assert report.main([str(copied)]) == 0
    after = results.load(copied).trials.set_index("trial_id").loc[stage["trial_id"]]
    assert (after["unmoved"], after["on_front"]) == (True, False)
    assert np.isnan(after["p_front"])


def test_the_parent_of_a_stage_is_the_trial_before_it() -> None:
    plan = make_plan(space())
    by_label = {trial.label: trial for trial in plan.trials}
    first, second = by_label["dpo:helpfulness@2"], by_label["dpo:helpfulness@2>dpo:harmlessness@2"]
    assert parent_trial(second, plan) == first
    assert parent_trial(first, plan) == plan.baseline
    others = [trial for trial in plan.trials if trial.method in ("sft", "p-sacpo", "sentinel")]
    assert {parent_trial(trial, plan) for trial in others} == {None}
