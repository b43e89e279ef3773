"""A space expands into trials and steps. A step's id hashes everything that can change its output, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sacpo.planning.payloads import DPOPayload, GeneratePayload
from sacpo.planning.plan import Plan, read_plan
from sacpo.planning.planner import make_plan
from sacpo.spaces.loading import load_space, parse_space
from tests.spaces import ROOT, paper_prompts, quickstart, small, space


def ids(plan: Plan) -> set[str]:
    return set(plan.steps)


def test_the_papers_grid_of_25_variants_expands_from_one_file(tmp_path: Path) -> None:
    plan = make_plan(load_space(ROOT / "tune_spaces" / "paper.yaml", paper_prompts(tmp_path)))
    methods = [trial.method for trial in plan.trials]
    counts = {method: methods.count(method) for method in dict.fromkeys(methods)}
    assert counts == {"sft": 1, "one-step": 3, "sacpo": 16, "p-sacpo": 3, "naive-merge": 3, "sentinel": 2}
    # 3 one-step + 16 two-step trainings; without sharing 3 + 16 x 2 + 6 merges x 2
    assert plan.trainings() == (19, 3 + 32 + 12)


def test_trials_have_the_parameters_that_their_labels_name() -> None:
    plan = make_plan(space())
    by_label = {trial.label: trial for trial in plan.trials}
    two = by_label["dpo:helpfulness@2>dpo:harmlessness@2"]
    assert (two.method, two.beta, two.beta_over_lambda, two.q, two.seed) == ("sacpo", 2.0, 2.0, None, 0)
    half = by_label["p-sacpo q=0.5 (dpo:helpfulness@2>dpo:harmlessness@2)"]
    assert half.policy == {"first": by_label["dpo:helpfulness@2"].policy["policy"], "second": two.policy["policy"]}
    answers = plan.steps[half.generate["helpfulness"]]
    assert isinstance(answers.payload, GeneratePayload)
    assert (answers.payload.q, answers.parents) == (0.5, half.policy)
    assert plan.baseline.label == "sft"
    against_itself = plan.steps[plan.baseline.judge["helpfulness"]].parents
    assert against_itself["answers"] == against_itself["baseline"]
    assert not make_plan(space(), canaries=False).baseline.judge


def test_chains_may_have_any_length_and_each_stage_starts_from_the_policy_before_it() -> None:
    chain = {
        "chain": "dpo:helpfulness>dpo:harmlessness>dpo:helpfulness",
        "beta": [1.0, 2.0],
        "beta_over_lambda": [[0.5], [0.1, 0.2]],
    }
    plan = make_plan(space(chains=[chain], merges=[]))
    assert [len(trial.kl_parameters) for trial in plan.trials] == [0, 1, 2, 3, 3, 1, 2, 3, 3, 0, 0]  # and two sentinels
    last = plan.steps[plan.trials[3].policy["policy"]]
    assert isinstance(last.payload, DPOPayload)
    assert last.payload.kl_parameter == 0.1
    assert last.parents["policy"] == plan.trials[2].policy["policy"]
    assert plan.trials[3].beta_over_lambda is None


def test_seeds_share_the_sft_policy_and_nothing_after_it() -> None:
    plan = make_plan(space(seeds=[0, 1], merges=[]))
    trainings = [step for step in plan.steps.values() if step.kind == "train"]
    assert len(trainings) == 1 + 2 * 2
    assert len({trial.label for trial in plan.trials}) == len(plan.trials)


@pytest.mark.parametrize(
    "change",
    [{"resources__workers": 2}, {"resources__per_device_batch": 8}, {"resources__sharding": "ddp"},
     {"resources__checkpoint_steps": 5}, {"name": "other"}],
)  # fmt: skip
def test_settings_of_the_execution_change_no_id(change: dict[str, Any]) -> None:
    assert ids(make_plan(space(**change))) == ids(make_plan(space()))


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"training__dpo__learning_rate": 2e-3}, {"train"}),
        ({"training__dpo__adam_epsilon": 1e-7}, {"train"}),
        ({"training__dpo__batch_size": 128}, {"train"}),
        ({"training__dpo__loss": "ipo"}, {"train"}),
        ({"seeds": [7]}, {"train"}),
        ({"model__seed": 1}, {"model", "data", "preferences", "train"}),
        ({"data__max_length": 15}, {"data", "train"}),
        ({"data__demonstrations__seed": 1}, {"data", "train"}),
        ({"evaluation__generation__seed": 1}, {"generate"}),
        ({"evaluation__generation__batch_size": 8}, {"generate"}),
    ],
)
def test_settings_that_can_change_an_output_change_its_id(change: dict[str, Any], kinds: set[str]) -> None:
    before, after = make_plan(space()), make_plan(space(**change))
    new = {step.kind for step in after.steps.values() if step.id not in before.steps}
    kept = {step.kind for step in after.steps.values() if step.id in before.steps}
    assert kinds <= new
    # evaluation settings retrain nothing
    assert ("train" in new) == ("train" in kinds)
    if kinds == {"train"}:
        assert {"model", "data"} <= kept


def test_a_file_is_identified_by_its_content_not_by_its_path(tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"prompt": f"p{i}", "chosen": "a", "rejected": "b"}) for i in range(8))
    prompts = json.dumps([{"prompt": "q"}])
    steps = []
    for name, content in (("one", rows), ("two", rows), ("three", rows + "\n")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "rows.jsonl").write_text(content)
        (folder / "prompts.json").write_text(prompts)
        (folder / "config.json").write_text("{}")
        data = small(merges=[])
        data["model"] = {"kind": "pretrained", "path": str(folder / "config.json")}
        files = {"kind": "files", "path": str(folder / "rows.jsonl"), "format": "pairs"}
        data["data"] = {"preferences": {"helpfulness": files, "harmlessness": files}, "judge_fraction": 0.5}
        del data["training"]["sft"], data["preview"]
        judge = {"kind": "trained_reward_model", "objective": "helpfulness", "training": {"learning_rate": 1e-3}}
        criterion = {"prompts": {"kind": "file", "path": str(folder / "prompts.json")}, "judge": judge}
        data["evaluation"] = {"helpfulness": criterion, "harmlessness": criterion}
        steps.append(ids(make_plan(parse_space(data))))
    assert steps[0] == steps[1]
    assert steps[0] != steps[2]


def test_a_dry_run_is_fast_touches_nothing_and_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from sacpo.sweep import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'ray', 'transformers', 'pandas', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "--dry-run", "--results", str(tmp_path / "results")]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "15 trials, 100 steps" in answer.stdout
    assert "helpfulness: 12 prompts can show a win rate 0.404 away from 0.5" in answer.stdout
    assert "7 with shared stages, 35 without: sharing saves 28" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_at_the_output_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sacpo.sweep", "--dry-run"]
    answer = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    os.close(write)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_settings_that_no_chain_uses_are_noted() -> None:
    data = quickstart()
    data["training"]["kto"] = {"learning_rate": 1e-3}
    assert "training.kto is used by no chain of this space" in make_plan(parse_space(data)).notes


def test_a_plan_survives_its_json_form() -> None:
    plan = make_plan(space(evaluation__all_pairs=True))
    assert read_plan(plan.to_json().encode(), "plan.json") == plan
