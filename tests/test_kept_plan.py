"""The kept plan: results outlive what made them, stay where they are, and lose no number.

`copied` is the results folder of a small sweep in the calling process, its store inside.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sacpo import export, judge, report, results
from sacpo import sweep as sweep_module
from sacpo.planning import planner
from sacpo.planning.kinds import KINDS
from sacpo.planning.plan import Plan, read_plan
from sacpo.planning.planner import make_plan
from sacpo.reporting.model_card import model_card
from sacpo.results.collect import complete
from sacpo.results.kept_plan import read_kept_plan
from sacpo.results.sweep_facts import SweepFacts, read_facts
from sacpo.results.write import MissingStepsError, write_results
from sacpo.runs.report_run import open_store
from sacpo.spaces.loading import load_space
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import Store
from tests.commands import Answer, call, sweep_here, write_space
from tests.spaces import small, space

NOISY = {"kind": "noisy", "error": 0.2}
MERGE = "p-sacpo q=0.5 (dpo:helpfulness@2>dpo:harmlessness@2)"


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def tables(folder: Path) -> dict[str, bytes]:
    """The content of the tables of a results folder."""
    return {path.name: path.read_bytes() for path in [*folder.glob("*.parquet"), folder / "trials.csv"]}


def judge_command(folder: Path, tmp_path: Path, name: str = "shaky", *more: str, **settings: Any) -> Answer:
    """Judge the stored answers by the noisy judge."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(NOISY | settings))
    return call(judge.main, str(folder), "--judge", str(path), *more)


def step_folders(folder: Path) -> list[Path]:
    """The step folders of the store of a results folder."""
    return list((folder / "store" / "steps").iterdir())


def drop_records(folder: Path, *prefixes: str) -> None:
    """Remove the records of all steps of these kinds from the store of a results folder."""
    for prefix in prefixes:
        for record in (folder / "store" / "steps").glob(f"{prefix}-*/record.json"):
            record.unlink()


@pytest.fixture
def no_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every attempt to plan, to hash an input or to read prompts an error, and all recipes newer."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the kept plan is used")

    for module, name in (
        ("planning.planner", "make_plan"),
        ("planning.planner", "read_prompts"),
        ("planning.graph", "source_content"),
        ("sweep", "make_plan"),
    ):
        monkeypatch.setattr(f"sacpo.{module}.{name}", refuse)
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
    answer = judge_command(copied, tmp_path, "--name", "shaky")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    judged = results.load(copied)
    pd.testing.assert_frame_equal(judged.trials, numbers)
    assert set(judged.comparisons["panel"]["panel"]) == {"main", "shaky"}
    assert set(judged.comparisons["judges"]["panel"]) == {"main", "shaky"}
    assert call(export.main, str(copied), MERGE, str(tmp_path / "policy")).returncode == 0
    steps = len(step_folders(in_process_results))
    assert f"{steps} of {steps}" in call(sweep_module.main, "--status", str(copied)).stdout


def test_an_input_that_moved_does_not_matter(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rubric of an LLM judge is an input; its verdicts come from a stand-in for the endpoint."""
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("The shorter answer is better.")
    data = small(evaluation__sentinels=[])
    data["evaluation"]["helpfulness"]["panel"] = {
        "words": {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None,
                  "rubric": str(rubric), "calls": {"attempts": 1}}
    }  # fmt: skip
    folder = tmp_path / "judged"
    answer = sweep_here(write_space(data, tmp_path), folder, "--store", str(copied / "store"), "--skip-canaries")
    assert answer.returncode == 1, answer.stdout + answer.stderr  # nothing answers at the endpoint
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
        judge_command(moved, tmp_path, "other", seed=1),
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


# ------------------------------------------------------------------------------------------------------- another space


def raise_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "generate", dataclasses.replace(KINDS["generate"], recipe=99))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"training__dpo": {"learning_rate": 2e-3, "epochs": 1, "batch_size": 64}},
            "training.dpo.learning_rate: 0.001",
        ),
        ({"chains": [{"chain": "dpo:helpfulness", "beta": 2.0}]}, "chains.0.chain: 'dpo:helpfulness>dpo:harmlessness'"),
        ({"seeds": [0, 1]}, "seeds.1: absent in the results folder, 1 in this space"),
        ({}, "recipe of generate steps: 2 in the results folder, 99 in this version of sacpo"),
    ],
)
def test_another_space_is_refused_before_anything_is_written(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], expected: str
) -> None:
    if not change:
        raise_recipe(monkeypatch)
    before = snapshot(copied)
    answer = sweep_here(write_space(small(**change), tmp_path), copied)
    assert answer.returncode == 2
    assert expected in answer.stderr
    assert f"give another folder with --results, and --store {copied / 'store'}" in answer.stderr
    assert snapshot(copied) == before
    dry_run = sweep_here(write_space(small(**change), tmp_path), copied, "--dry-run")
    assert dry_run.returncode == 0
    assert expected in dry_run.stdout
    assert snapshot(copied) == before


def test_a_changed_input_is_named_if_no_setting_differs(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "PROMPTS", planner.PROMPTS[:20])
    answer = sweep_here(write_space(small(), copied.parent), copied)
    assert answer.returncode == 2
    assert "the content of an input: data, prompts, model or rubric" in answer.stderr


def test_results_without_a_plan_are_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "plan.json").unlink()
    before = snapshot(copied)
    for main, more in ((sweep_module.main, []), (report.main, None)):
        arguments = [str(copied)] if more is None else [str(write_space(small(), tmp_path)), "--results", str(copied)]
        answer = call(main, *arguments)
        assert answer.returncode == 2
        assert "plan.json is missing" in answer.stderr
    (copied / "plan.json").write_text('{"space": 1}')
    assert "written by another version of sacpo" in call(report.main, str(copied)).stderr
    (copied / "plan.json").unlink()
    assert snapshot(copied) == before


# -------------------------------------------------------------------------------------- no table with numbers is lost


@pytest.mark.parametrize("damage", ["records", "store"])
def test_a_report_without_the_steps_leaves_the_tables_and_says_which_are_missing(copied: Path, damage: str) -> None:
    before = tables(copied)
    if damage == "records":
        drop_records(copied, "judge")
    else:
        shutil.rmtree(copied / "store")
    (copied / "report.html").unlink()
    answer = call(report.main, str(copied))
    assert answer.returncode == 0
    expected = "the store lacks 14 steps (judge helpfulness" if damage == "records" else "there is no store at"
    assert expected in answer.stderr
    assert "the report is made from the tables as they were last written" in answer.stderr
    assert tables(copied) == before
    assert (copied / "report.html").exists()


def test_judging_again_goes_on_from_the_tables_where_the_store_lacks_other_steps(copied: Path, tmp_path: Path) -> None:
    before = results.load(copied)
    drop_records(copied, "probabilities")
    answer = judge_command(copied, tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "probabilities" in answer.stderr
    after = results.load(copied)
    pd.testing.assert_frame_equal(after.trials, before.trials)
    assert set(after.comparisons["panel"]["panel"]) == {"main", "shaky"}
    assert set(after.comparisons["judges"]["panel"]) == {"main", "shaky"}
    assert len(after.steps) > len(before.steps)
    kept = [judge_id for trial in read_kept_plan(copied).trials for judge_id in trial.panel]
    assert set(kept) == {"shaky"}


def test_judging_again_without_the_answers_names_them_and_changes_nothing(copied: Path, tmp_path: Path) -> None:
    drop_records(copied, "generate")
    before = snapshot(copied)
    answer = judge_command(copied, tmp_path)
    assert answer.returncode == 1
    assert "lacks 16 steps (generate helpfulness" in answer.stdout
    assert snapshot(copied) == before


def test_an_export_without_the_policy_names_the_step(copied: Path, tmp_path: Path) -> None:
    drop_records(copied, "train")
    answer = call(export.main, str(copied), "dpo:helpfulness@2", str(tmp_path / "policy"))
    assert answer.returncode == 2
    assert "lacks train dpo:helpfulness@2" in answer.stderr
    assert not (tmp_path / "policy").exists()


def test_a_sweep_that_cannot_finish_leaves_the_numbers(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was emptied and the run is interrupted in its first step; the next run computes all again."""
    before, facts = tables(copied), read_facts(copied)
    shutil.rmtree(copied / "store")
    space_file = write_space(small(), tmp_path)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sacpo.execution.in_process.execute", interrupt)
        answer = sweep_here(space_file, copied)
    assert answer.returncode == 1
    assert "so the tables are left as they are" in answer.stdout
    assert "stopped; the same command goes on from here" in answer.stdout
    assert tables(copied) == before
    assert read_facts(copied) == facts, "the run did no work"


def test_optional_tables_are_removed_by_complete_results_only(copied: Path) -> None:
    plan, facts = read_kept_plan(copied), read_facts(copied)
    stale = copied / "ranking.parquet"
    shutil.copy(copied / "differences.parquet", stale)
    existing = {path.name for path in copied.glob("*.parquet")}
    finished = complete(plan, Store(copied / "store"), facts)
    write_results(dataclasses.replace(finished, comparisons={}), plan, copied)
    assert {path.name for path in copied.glob("*.parquet")} == existing
    write_results(finished, plan, copied)
    assert {path.name for path in copied.glob("*.parquet")} == existing - {"ranking.parquet"}


def test_failed_trials_replace_numbers_and_pending_ones_do_not(copied: Path) -> None:
    plan, loaded = read_kept_plan(copied), results.load(copied)

    def with_status(status: str) -> results.Results:
        trials = loaded.trials.copy()
        trials.loc[3, "status"] = status
        return dataclasses.replace(loaded, trials=trials)

    with pytest.raises(MissingStepsError, match="numbers of 1 trials"):
        write_results(with_status("pending"), plan, copied)
    assert results.load(copied).trials["status"].eq("done").all()
    write_results(with_status("failed"), plan, copied)
    assert results.load(copied).trials.loc[3, "status"] == "failed"


# ------------------------------------------------------------------------------------------------------------- exports


def test_an_export_holds_no_path_and_says_how_to_get_the_parents(copied: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy"
    assert call(export.main, str(copied), MERGE, str(out)).returncode == 0
    for path in out.iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, path
        assert str(copied).encode() not in content, path
        assert b"/tmp/" not in content, path
    merge = json.loads((out / "mergekit.yaml").read_text())
    assert [model["model"] for model in merge["models"]] == ["first", "second"]
    assert [model["parameters"]["weight"] for model in merge["models"]] == [0.5, 0.5]
    card = (out / "README.md").read_text()
    assert '- `first`: `sacpo export RESULTS "dpo:helpfulness@2" first`' in card
    assert "trl 1." in card


def test_a_model_card_names_inputs_by_content_and_not_by_path(tmp_path: Path) -> None:
    """A plan of a pretrained model and data files, which are hashed and never used."""
    plan = file_plan(tmp_path)
    facts = SweepFacts.of(plan, "store", None)
    row = {f"{name}{end}": 0.5 for name in plan.criteria for end in ("", "_low", "_high")}
    row |= {f"n_{name}": 3 for name in plan.criteria}
    card = model_card(plan, plan.trials[1], row, facts)
    assert str(tmp_path) not in card
    assert '"sha256"' in card


def file_plan(folder: Path) -> Plan:
    """The plan of a sweep whose model, data and prompts are files in a folder."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    pairs = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    for name in ("helpful", "harmless"):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
        (folder / f"{name}-prompts.jsonl").write_text(json.dumps({"prompt": f"a {name} question"}))
    judge_settings = {"kind": "llm", "model": "m", "api_key_env": None, "base_url": "http://127.0.0.1:9/v1"}
    data = {
        "name": "files",
        "model": {"kind": "pretrained", "path": "model"},
        "data": {
            "preferences": {
                "helpfulness": {"kind": "files", "path": "helpful.jsonl", "format": "pairs"},
                "harmlessness": {"kind": "files", "path": "harmless.jsonl", "format": "pairs"},
            }
        },
        "training": {"dpo": {"learning_rate": 1e-3, "batch_size": 4}},
        "chains": [{"chain": "dpo:helpfulness>dpo:harmlessness", "beta": 0.1, "beta_over_lambda": 0.1}],
        "evaluation": {
            "helpfulness": {"prompts": {"kind": "file", "path": "helpful-prompts.jsonl"}, "judge": judge_settings},
            "harmlessness": {"prompts": {"kind": "file", "path": "harmless-prompts.jsonl"}, "judge": judge_settings},
        },
    }
    return make_plan(load_space(write_space(data, folder)))
