"""What the model will see is shown and checked before anything is trained, all problems at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sacpo import sweep
from sacpo.errors import StepError
from sacpo.execution.artifacts import INSPECTION, PROMPT_END
from sacpo.execution.in_process import execute
from sacpo.execution.runner import Runner
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.planning.schedule import scheduled_steps
from sacpo.spaces.loading import parse_space
from sacpo.store.step_store import Store
from tests.chain_models import chain_model, chain_tokenizer, save, template
from tests.commands import write_space
from tests.spaces import deep_update


def real_space(folder: Path, positions: int = 64, rows: int = 12, **changes: Any) -> dict[str, Any]:
    """A space with a tiny pretrained model and preference files."""
    model = save(
        folder / "model", chain_model({"hello": "</s>"}, max_position_embeddings=positions), chain_tokenizer(template())
    )
    words = ("one", "two", "three", "four", "five", "six", "seven")
    pairs = [
        {"prompt": f"why {words[i % 7]} {words[i // 7]}", "chosen": "hello one", "rejected": "two two two"}
        for i in range(rows)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "prompts.json").write_text(json.dumps([{"prompt": "why hello"}, {"prompt": "hello why seven six"}]))
    source = {"kind": "files", "path": str(folder / "pairs.jsonl"), "format": "pairs"}
    judge = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:9/v1", "api_key_env": None}
    criterion = {"prompts": {"kind": "file", "path": str(folder / "prompts.json")}, "judge": judge}
    data: dict[str, Any] = {
        "name": "real",
        "model": {"kind": "pretrained", "path": str(model), "dtype": "float32"},
        "data": {"preferences": {"helpfulness": source, "harmlessness": source}, "max_length": 32},
        "training": {"dpo": {"learning_rate": 1e-3, "batch_size": 4}, "kto": {"learning_rate": 1e-3, "batch_size": 4}},
        "chains": [
            {"chain": "dpo:helpfulness>dpo:harmlessness", "beta": 0.1, "beta_over_lambda": 0.1},
            {"chain": "kto:helpfulness", "beta": 0.1},
        ],
        "evaluation": {"generation": {"max_new_tokens": 8}, "helpfulness": criterion, "harmlessness": criterion},
        "resources": {"per_device_batch": 4},
    }
    return deep_update(data, changes)


def inspect(plan: Plan, folder: Path) -> dict[str, Any]:
    """The content of `inspection.json`."""
    assert plan.inspection is not None
    runner = Runner(plan, Store(folder), "run", execute)
    record = runner.ensure(plan.inspection)
    content: dict[str, Any] = json.loads(
        (runner.store.verified_output_dir(plan.inspection, record) / INSPECTION).read_text()
    )
    return content


def test_an_inspection_shows_rendered_examples_with_the_end_of_the_prompt(tmp_path: Path) -> None:
    content = inspect(make_plan(parse_space(real_space(tmp_path))), tmp_path / "store")
    pairs = next(source for source in content["data"] if "(pairs)" in source["source"])
    assert (pairs["rows"], pairs["examples"]) == (12, 12)
    chosen = pairs["shown"][0]
    assert chosen.startswith("chosen: <turn>|user|why|one|one|</s>|<turn>|assistant")
    assert chosen.endswith(f"{PROMPT_END} hello|one|</s>")
    labelled = next(source for source in content["data"] if "(labelled)" in source["source"])
    assert labelled["shown"][0].startswith("completion (desirable: True): ")
    assert pairs["tokens"]["p100"] == 12
    assert [item["criterion"] for item in content["evaluation"]] == ["helpfulness", "harmlessness"]
    assert content["evaluation"][0]["tokens"]["p100"] == 9
    assert content["end_tokens"] == ["</s>"]
    assert content["answer"]["response"] == "hello|</s>"


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    space = real_space(tmp_path, positions=12, rows=6, training__dpo__batch_size=64, training__kto__batch_size=16)
    with pytest.raises(StepError) as caught:
        inspect(make_plan(parse_space(space)), tmp_path / "store")
    problems = str(caught.value).splitlines()
    assert "data.max_length is 32, but the model has 12 positions; lower it" in problems
    assert any(p.startswith("training.dpo.batch_size is 64, but data helpfulness (pairs) has 6") for p in problems)
    assert any(p.startswith("training.kto.batch_size is 16, but data helpfulness (labelled) has 12") for p in problems)
    assert any("max_new_tokens 8 and the longest prompt of helpfulness (9 tokens) exceed the model's 12 positions" in p
               and "to 3 or less" in p for p in problems)  # fmt: skip


def test_nothing_is_trained_before_the_inspection(tmp_path: Path) -> None:
    plan = make_plan(parse_space(real_space(tmp_path)))
    steps = scheduled_steps(plan)
    assert plan.inspection is not None
    kinds = {plan.steps[step_id].kind for step_id, step in steps.items() if plan.inspection not in step.parents}
    assert kinds == {"model", "data", "inspection"}
    assert all(plan.inspection in plan.required_steps(trial) for trial in plan.trials)


def test_the_command_shows_the_inspection_and_all_problems_of_the_data(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = real_space(tmp_path)
    command = [str(write_space(space, tmp_path)), "--results", str(tmp_path / "results"), "--inspect"]
    assert sweep.main(command) == 0
    text = capfd.readouterr().out
    assert "data helpfulness (pairs)" in text
    assert "12 rows, 12 examples" in text
    assert f"{PROMPT_END} hello|one|</s>" in text
    assert not (tmp_path / "results" / "trials.parquet").exists()
    (tmp_path / "bad.jsonl").write_text('{"prompt": "why"}\n' * 4)
    for objective in ("helpfulness", "harmlessness"):
        command += ["--set", f"data.preferences.{objective}.path={tmp_path / 'bad.jsonl'}"]
    assert sweep.main([*command[:2], str(tmp_path / "other"), *command[3:]]) == 2
    text = capfd.readouterr().out
    assert all(f"data {name}" in text for name in ("helpfulness (pairs)", "helpfulness (labelled)", "harmlessness"))


def test_a_synthetic_space_has_nothing_to_inspect(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--results", str(tmp_path / "results"), "--inspect"]) == 0
    assert "nothing to inspect" in capfd.readouterr().out


def test_the_problems_of_a_source_come_with_those_of_all_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One source is refused for two reasons; the batch of the other and the model's positions are checked as well."""
    changes = {"training__dpo__batch_size": 64, "training__kto__batch_size": 4}
    space = real_space(tmp_path, positions=12, **changes)
    rows = [{"prompt": "why", "chosen": "hello one"}] * 2
    rows += [{"prompt": f"why {'six ' * n}", "chosen": "hello " * 40, "rejected": "two"} for n in range(1, 5)]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [str(write_space(space, tmp_path)), "--results", str(tmp_path / "results"), "--inspect"]
    command += ["--set", f"data.preferences.harmlessness.path={tmp_path / 'bad.jsonl'}"]
    assert sweep.main(command) == 2
    text = capfd.readouterr().out
    assert "data harmlessness (pairs): " in text
    assert "missing field rejected: 2" in text
    assert "longer than max_length: 4" in text
    assert re.search(r"; raise data\.max_length \(\d+ would keep 99 % of them, \d+ all\), or raise", text)
    assert "training.dpo.batch_size is 64, but data helpfulness (pairs) has 12 examples" in text
    assert "data.max_length is 32, but the model has 12 positions" in text


def test_a_sweep_prints_what_the_inspection_found_out_before_it_trains(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Who only sweeps must see it too, also where an earlier run inspected."""
    once = {f"evaluation__{criterion}__judge__calls": {"attempts": 1} for criterion in ("helpfulness", "harmlessness")}
    space = real_space(tmp_path, **once)
    thinking = template().replace("assistant {% endif %}", "assistant <think> {% endif %}")
    save(tmp_path / "model", chain_model({"hello": "</s>"}), chain_tokenizer(thinking))
    rows = [json.loads(line) | {"system": "six"} for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [str(write_space(space, tmp_path)), "--results", str(tmp_path / "results"), "--address", "in-process"]
    notes = (
        "note: the chat template ends a prompt with '<think>'",
        "note: data helpfulness (pairs): the columns system are not read",
    )
    for _ in range(2):
        sweep.main(command)  # its judge's endpoint does not answer, so the canaries end the sweep
        text = capfd.readouterr().out.replace("\n", " ")
        assert all(note in text for note in notes)
    assert sweep.main([*command, "--inspect"]) == 0
    text = capfd.readouterr().out
    assert all(note in text for note in notes)
    assert "columns that the format does not read: system" in text


def test_the_length_that_would_keep_all_examples_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    space = real_space(tmp_path, data__max_length=11)
    for source in space["data"]["preferences"].values():
        source["max_invalid_fraction"] = 0.9
    rows = [{"prompt": "why", "chosen": "hello one", "rejected": "two"}] * 8
    rows += [{"prompt": "why six", "chosen": "hello one one one", "rejected": "two"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sweep.main([str(write_space(space, tmp_path)), "--results", str(tmp_path / "results"), "--inspect"]) == 0
    text = capfd.readouterr().out
    assert "left out, longer than max_length: 1" in text
    assert "data.max_length 11; 12 would keep 99 % of the examples, 12 all" in text


def test_warnings_of_libraries_that_concern_no_sweep_are_left_out() -> None:
    """Those that DeepSpeed and bitsandbytes give on a CPU, in a process that has not imported them before."""
    code = """
from sacpo.execution.output_capture import quiet_libraries
quiet_libraries()
import importlib.util, logging, deepspeed
deepspeed.accelerator.get_accelerator()
if importlib.util.find_spec("bitsandbytes"):
    import bitsandbytes
logging.getLogger("DeepSpeed").warning("another one")
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text = answer.stdout + answer.stderr
    assert "another one" in text
    assert re.search("Setting accelerator|gemm_4bit", text) is None
