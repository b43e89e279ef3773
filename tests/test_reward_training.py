"""Reward models that a sweep trains as judges, on a worker group under ZeRO-3."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from sacpo.cluster import executor
from sacpo.execution import in_process
from sacpo.execution.runner import Runner
from sacpo.planning.planner import make_plan
from sacpo.spaces.loading import parse_space
from sacpo.store.step_store import Store
from tests.models import tiny_chat_model
from tests.spaces import small
from tests.stages import Expect, Stage


@pytest.mark.slow
def test_two_zero3_workers_train_the_reward_model_of_one_process(worker_group: Expect, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "chosen": f"A kind answer, {i}.", "rejected": "No."} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.json").write_text('[{"prompt": "Hello?"}]')
    files = {"kind": "files", "path": str(tmp_path / "rows.jsonl"), "format": "pairs"}
    training = {"learning_rate": 1e-3, "batch_size": 8}
    criterion = {
        "prompts": {"kind": "file", "path": str(tmp_path / "prompts.json")},
        "judge": {"kind": "trained_reward_model", "objective": "helpfulness", "training": training},
    }
    settings = small(
        model={"kind": "pretrained", "path": tiny_chat_model(tmp_path / "model"), "dtype": "float32"},
        data={"preferences": {"helpfulness": files, "harmlessness": files}, "judge_fraction": 0.5},
        evaluation={"helpfulness": criterion, "harmlessness": criterion},
        resources={"workers": 2, "cpus_per_worker": 1, "per_device_batch": 2},
    )
    del settings["training"]["sft"], settings["preview"]
    plan = make_plan(parse_space(settings))
    judge = next(step for step in plan.steps.values() if step.label == "judge helpfulness")
    here = Runner(plan, Store(tmp_path / "here"), "t", in_process.execute)
    for parent in judge.parents.values():
        here.ensure(parent)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = Runner(plan, Store(tmp_path / "there"), "t", executor.execute)
    worker_group(judge.id)
    one, two = (Stage(r.ensure(judge.id), r.store.verified_output_dir(judge.id), r.store) for r in (here, there))
    assert (two.effective.zero_stage, two.effective.world_size) == (3, 2)
    assert one.metrics.throughput.padded_because is two.metrics.throughput.padded_because is None
    assert one.losses() == pytest.approx(two.losses(), rel=1e-4)
    weights = load_file(two.output / "model.safetensors")
    for name, expected in load_file(one.output / "model.safetensors").items():
        assert_close(weights[name], expected, rtol=1e-3, atol=1e-4)
