"""A results folder belongs to one space, and no table with numbers is overwritten by one without.

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

from sacpo import export, report, results
from sacpo import sweep as sweep_module
from sacpo.planning import prompt_sets
from sacpo.planning.kinds import KINDS
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.reporting.model_card import model_card
from sacpo.results.collect import complete
from sacpo.results.kept_plan import read_kept_plan
from sacpo.results.sweep_facts import SweepFacts, read_facts
from sacpo.results.write import MissingStepsError, write_results
from sacpo.spaces.loading import load_space
from sacpo.store.step_store import Store
from tests.commands import call, sweep_here, write_space
from tests.results_folders import MERGE, drop_records, judge_command, snapshot, tables
from tests.spaces import small

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
        (
            {},
            f"recipe of generate steps: {KINDS['generate'].recipe} in the results folder, 99 in this version of sacpo",
        ),
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
    monkeypatch.setattr(prompt_sets, "PROMPTS", prompt_sets.PROMPTS[:20])
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
    expected = "the store lacks 16 steps (judge helpfulness" if damage == "records" else "there is no store at"
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
    registered = {name for name in snapshot(copied) if name.startswith("store/sweeps/")}
    assert {name: facts for name, facts in snapshot(copied).items() if name not in registered - before.keys()} == before


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
    row |= {f"helpfulness_judge_accuracy{end}": 0.75 for end in ("", "_low", "_high")}
    card = model_card(plan, plan.trials[1], row | {"helpfulness_judge_pairs": 12.0}, facts)
    assert "llm, held-out accuracy 0.750 [0.750, 0.750] from 12 pairs |" in card
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
