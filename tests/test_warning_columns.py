"""A policy that did not move, or whose answers do not end, is shown in a warning and is no candidate for the front."""

from __future__ import annotations

from pathlib import Path

import pytest

from sacpo import results, sweep
from sacpo.planning.planner import make_plan
from sacpo.results.warning_columns import parent_trial
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


def test_the_parent_of_a_stage_is_the_trial_before_it() -> None:
    plan = make_plan(space())
    by_label = {trial.label: trial for trial in plan.trials}
    first, second = by_label["dpo:helpfulness@2"], by_label["dpo:helpfulness@2>dpo:harmlessness@2"]
    assert parent_trial(second, plan) == first
    assert parent_trial(first, plan) == plan.baseline
    others = [trial for trial in plan.trials if trial.method in ("sft", "p-sacpo", "sentinel")]
    assert {parent_trial(trial, plan) for trial in others} == {None}
