"""The kept plan: results outlive what made them, stay where they are, and lose no number.

`copied` is the results folder of a small sweep in the calling process, its store inside.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sacpo import export, report, results
from sacpo import sweep as sweep_module
from sacpo.planning.kinds import KINDS
from sacpo.planning.plan import read_plan
from sacpo.planning.planner import make_plan
from sacpo.results.kept_plan import read_kept_plan
from sacpo.results.sweep_facts import read_facts
from sacpo.runs.report_run import open_store
from sacpo.store.results_location import ResultsLocation
from tests.commands import call, sweep_here, write_space
from tests.results_folders import (
    LAST_STAGE,
    MERGE,
    NOISY,
    copy_store,
    drop_records,
    judge_command,
    snapshot,
    step_folders,
)
from tests.s3 import BUCKET, Service
from tests.spaces import small, space


@pytest.fixture
def no_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to plan, to hash an input or to read prompts an error, and all recipes newer."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the kept plan is used")

    for name in ("planning.planner.make_plan", "planning.prompt_sets.read_source", "planning.graph.Graph.content"):
        monkeypatch.setattr(f"sacpo.{name}", refuse)
    monkeypatch.setattr(sweep_module, "make_plan", refuse)
    for kind, entry in KINDS.items():
        monkeypatch.setitem(KINDS, kind, dataclasses.replace(entry, recipe=entry.recipe + 1))


# ------------------------------------------------------------------------------------------------------ the kept plan


def test_the_plan_is_in_the_results_folder_and_in_the_store(in_process_results: Path) -> None:
    plan = make_plan(space())
    assert read_kept_plan(in_process_results) == plan
    (kept,) = (in_process_results / "store" / "sweeps").glob("*.plan.json")
    assert read_plan(kept.read_bytes(), str(kept)) == plan
    facts = read_facts(in_process_results)
    assert (facts.plan_id, facts.store, facts.name) == (plan.plan_id, "store", "small")
    assert facts.space == plan.space.model_dump(mode="json")


@pytest.mark.usefixtures("no_planning")
def test_results_are_reported_judged_exported_and_shown_without_planning_and_after_recipes_went_up(
    in_process_results: Path, copied: Path, tmp_path: Path
) -> None:
    numbers = results.load(copied).trials
    for name in ("report.html", "pareto.png"):
        (copied / name).unlink()
    assert call(report.main, str(copied)).returncode == 0
    assert (copied / "report.html").exists()
    pd.testing.assert_frame_equal(results.load(copied).trials, numbers)
    answer = judge_command(copied, tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    judged = results.load(copied)
    durations = ["seconds", "device_seconds"]  # with those of the new judge
    pd.testing.assert_frame_equal(judged.trials.drop(columns=durations), numbers.drop(columns=durations))
    assert set(judged.comparisons["panel"]["panel"]) == {"main", "shaky"}
    assert set(judged.comparisons["judges"]["panel"]) == {"main", "shaky"}
    assert call(export.main, str(copied), MERGE, str(tmp_path / "policy")).returncode == 0
    steps = len(step_folders(in_process_results))
    assert f"{steps} of {steps}" in call(sweep_module.main, "--status", str(copied)).stdout


def test_an_input_that_moved_does_not_matter(copied: Path, tmp_path: Path) -> None:
    """The rubric of an LLM judge is such an input."""
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("The shorter answer is better.")
    data = small(evaluation__sentinels=[])
    data["evaluation"]["helpfulness"]["panel"] = {
        "words": {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None,
                  "rubric": str(rubric), "calls": {"attempts": 1}}
    }  # fmt: skip
    folder = tmp_path / "judged"
    answer = sweep_here(write_space(data, tmp_path), folder, "--store", str(copied / "store"), "--skip-canaries")
    assert answer.returncode == 0, answer.stdout + answer.stderr  # equal answers are ties, without a call
    before = results.load(folder)
    rubric.unlink()
    answer = call(report.main, str(folder))
    assert (answer.returncode, answer.stderr) == (0, "")
    pd.testing.assert_frame_equal(results.load(folder).trials, before.trials)
    assert set(results.load(folder).steps["step_id"]) == set(before.steps["step_id"])
    assert call(export.main, str(folder), MERGE, str(tmp_path / "policy")).returncode == 0


def test_loading_reads_the_tables_alone(copied: Path) -> None:
    before = results.load(copied)
    shutil.rmtree(copied / "store")
    (copied / "plan.json").unlink()
    after = results.load(copied)
    assert after.sweep == before.sweep
    for name in ("trials", "steps", "responses", "verdicts"):
        pd.testing.assert_frame_equal(getattr(after, name), getattr(before, name))
    assert after.comparisons.keys() == before.comparisons.keys()


def test_a_copied_folder_is_used_there_and_the_original_is_not_touched(
    in_process_results: Path, copied: Path, tmp_path: Path
) -> None:
    original = snapshot(in_process_results)
    assert call(report.main, str(copied)).returncode == 0
    assert judge_command(copied, tmp_path).returncode == 0
    assert call(export.main, str(copied), MERGE, str(tmp_path / "policy")).returncode == 0
    drop_records(copied, "judge")
    answer = sweep_here(write_space(small(), tmp_path), copied)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert snapshot(in_process_results) == original
    assert (copied / "store" / "sweeps").exists()
    # Moved, with nothing at the old place: the same again.
    moved = tmp_path / "moved"
    copied.rename(moved)
    for status in (
        call(report.main, str(moved)),
        judge_command(moved, tmp_path, "other", "--skip-canaries", seed=1),
        call(export.main, str(moved), MERGE, str(tmp_path / "policy-2")),
        call(sweep_module.main, "--status", str(moved)),
    ):
        assert status.returncode == 0, status.stdout + status.stderr
    assert not copied.exists()
    assert f"({moved})" in call(sweep_module.main, "--status", str(moved)).stdout


def test_a_store_elsewhere_is_named_by_its_path_and_used_again_by_default(copied: Path, tmp_path: Path) -> None:
    store, folder = tmp_path / "shared", tmp_path / "second"
    shutil.move(copied / "store", store)
    spaces = write_space(small(), tmp_path)
    assert sweep_here(spaces, folder, "--store", str(store)).returncode == 0
    facts = read_facts(folder)
    assert (facts.store, facts.runs, facts.counts.steps_run) == (str(store), (), 0)
    assert facts.counts.steps_reused == facts.counts.steps_planned
    assert results.load(folder).steps["reused"].all()
    assert sweep_here(spaces, folder).returncode == 0
    assert read_facts(folder) == facts
    assert not (folder / "store").exists()
    moved = folder.rename(tmp_path / "third")
    assert open_store(ResultsLocation(moved), facts).uri == str(store)


# --------------------------------------------------------------------------------------------------- facts of the runs


def test_a_run_without_work_keeps_the_facts_of_the_runs_before(copied: Path, tmp_path: Path) -> None:
    before = read_facts(copied)
    (run,) = before.runs
    assert run.steps_run == before.counts.steps_run == before.counts.steps_planned == len(step_folders(copied))
    assert run.address == "in-process"
    assert run.command[:2] == ("sacpo", "sweep")
    assert run.ended_at is not None
    assert run.seconds == pytest.approx(run.ended_at - run.started_at)
    assert {"ray", "torch", "trl", "python"} <= set(run.versions)
    answer = sweep_here(write_space(small(), tmp_path), copied)
    assert answer.returncode == 0
    assert " 0 steps run" in answer.stdout
    assert read_facts(copied) == before
    assert not results.load(copied).steps["reused"].any()


def test_the_same_work_continues_with_other_resources_and_without_canaries(copied: Path, tmp_path: Path) -> None:
    before = read_facts(copied)
    drop_records(copied, "canary", "probabilities")
    space_file = write_space(small(resources__per_device_batch=32, resources__checkpoint_steps=7), tmp_path)
    answer = sweep_here(space_file, copied, "--skip-canaries")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    after = read_facts(copied)
    assert after.plan_id == before.plan_id
    assert (after.canaries, after.space["resources"]["checkpoint_steps"]) == ("skipped", 7)
    first, second = after.runs
    assert first == before.runs[0]
    assert second.steps_run == sum(path.name.startswith("probabilities") for path in step_folders(copied))
    steps = results.load(copied).steps
    assert not steps["reused"].any(), "both runs are of this folder"
    assert after.counts.steps_run == len(steps)


def test_a_judge_that_was_added_stays_when_the_sweep_continues(copied: Path, tmp_path: Path) -> None:
    assert judge_command(copied, tmp_path, "shaky", "--criterion", "helpfulness").returncode == 0
    with_judge = results.load(copied)
    runs = with_judge.sweep.runs
    assert [run.command[1] for run in runs] == ["sweep", "judge"]
    assert runs[1].steps_run == with_judge.sweep.counts.steps_planned - runs[0].steps_run
    drop_records(copied, "probabilities")
    space_file = write_space(small(), tmp_path)
    assert sweep_here(space_file, copied).returncode == 0
    after = results.load(copied)
    assert set(after.steps["step_id"]) == set(with_judge.steps["step_id"])
    pd.testing.assert_frame_equal(after.comparisons["panel"], with_judge.comparisons["panel"])
    pd.testing.assert_frame_equal(after.comparisons["judges"], with_judge.comparisons["judges"])
    # The same name again replaces the judge.
    assert judge_command(copied, tmp_path, "shaky", "--skip-canaries", error=0.4).returncode == 0
    assert set(results.load(copied).verdicts.query("panel == 'shaky'")["criterion"]) == {"helpfulness", "harmlessness"}


def test_a_judge_with_the_name_of_a_member_of_the_space_s_panel_is_refused(copied: Path, tmp_path: Path) -> None:
    data = small()
    data["evaluation"]["helpfulness"]["panel"] = {"shaky": NOISY}
    folder = tmp_path / "judged"
    assert sweep_here(write_space(data, tmp_path), folder, "--store", str(copied / "store")).returncode == 0
    before = snapshot(folder)
    answer = judge_command(folder, tmp_path, "shaky")
    assert answer.returncode == 2
    assert "evaluation.helpfulness.panel; give another --name" in answer.stderr
    assert snapshot(folder) == before


def test_results_in_a_bucket_name_their_store_relatively(s3: Service, in_process_results: Path, tmp_path: Path) -> None:
    """All but the last stage and the evaluation of its policy is in the bucket already."""
    copy_store(in_process_results, tmp_path / "store", LAST_STAGE)
    s3.upload(tmp_path / "store", "kept/results/store")
    uri = s3.uri("kept/results")
    answer = call(sweep_module.main, str(write_space(small(), tmp_path)), "--results", uri, "--address", "in-process")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    before = results.load(uri)
    assert before.sweep.store == "store"
    assert ResultsLocation(uri).resolve("store") == s3.uri("kept/results/store")
    assert {"kept/results/plan.json", "kept/results/sweep.json"} <= set(s3.keys("kept/results/"))
    for answer in (
        call(report.main, uri),
        judge_command(uri, tmp_path),
        call(export.main, uri, MERGE, str(tmp_path / "policy")),
    ):
        assert answer.returncode == 0, answer.stdout + answer.stderr
    assert set(results.load(uri).comparisons["panel"]["panel"]) == {"main", "shaky"}
    assert f"small ({uri})" in call(sweep_module.main, "--status", uri).stdout
    # Objects that were copied to another prefix are the results of that prefix.
    for key in s3.keys("kept/results/"):
        copy = {"Bucket": BUCKET, "Key": key}
        s3.client.copy_object(Bucket=BUCKET, CopySource=copy, Key=key.replace("kept/", "copied/", 1))
    for key in s3.keys("kept/"):
        s3.client.delete_object(Bucket=BUCKET, Key=key)
    copied = s3.uri("copied/results")
    assert call(report.main, copied).returncode == 0
    assert f"small ({copied})" in call(sweep_module.main, "--status", copied).stdout
    assert not s3.keys("kept/")
