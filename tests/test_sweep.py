"""The sweep command with real training: its tables, its second run, and the faults that it survives.

`small_results` went through Ray Tune, Ray Train and ZeRO-3; `in_process_results` is the same sweep in one process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from nbclient import NotebookClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from sacpo import export, report
from sacpo import sweep as sweep_module
from sacpo.execution.artifacts import read_probabilities
from sacpo.results import load
from sacpo.store.step_store import Store
from sacpo.synthetic.world import PROMPTS, REWARD, SLOTS
from tests.commands import FOUR_CPUS, arguments, call, run, sweep, sweep_here, write_space
from tests.results_folders import LAST_STAGE, copy_store
from tests.spaces import ROOT, small, space

PATIENCE = 500.0
"""Seconds that a stage may take to start, or a sweep to end, while other tests compute beside it."""
NUMBERS = ["helpfulness", "helpfulness_low", "helpfulness_high", "harmlessness", "n_helpfulness", "expected_reward",
           "expected_safety", "kl_to_sft", "support_mass", "share_of_optimum", "mean_response_tokens"]  # fmt: skip


def numbers(results: Path) -> pd.DataFrame:
    """The measured numbers of each trial."""
    return load(results).trials.set_index("trial_id")[NUMBERS].sort_index()


def records(results: Path) -> dict[str, int]:
    """When each step's record was written."""
    return {p.parent.name: p.stat().st_mtime_ns for p in (results / "store" / "steps").glob("*/record.json")}


def test_the_results_folder_holds_what_the_readme_says(small_results: Path) -> None:
    results = load(small_results)
    assert list(results.trials["status"]) == ["done"] * 8
    facts = results.sweep
    assert facts.counts.steps_run == facts.counts.steps_planned == len(results.steps)
    (sweep_run,) = facts.runs
    assert sweep_run.steps_run == len(results.steps)
    assert sweep_run.ended_at is not None
    assert sweep_run.ended_at > sweep_run.started_at
    assert {"ray", "torch", "trl", "python"} <= set(sweep_run.versions)
    assert facts.space == space(resources__workers=2).model_dump(mode="json")
    assert (pd.read_csv(small_results / "trials.csv")["label"] == results.trials["label"]).all()
    sft = results.trials.iloc[0]
    assert (sft["helpfulness"], sft["harmlessness"], sft["kl_to_sft"]) == (0.5, 0.5, 0.0)
    for _, row in results.trials.iloc[1:].iterrows():
        verdicts = results.verdicts[(results.verdicts["trial_id"] == row["trial_id"])]
        for criterion in ("helpfulness", "harmlessness"):
            scores = verdicts[verdicts["criterion"] == criterion]["outcome"].map({"win": 1.0, "tie": 0.5, "loss": 0.0})
            assert len(scores) == row[f"n_{criterion}"] == 24
            assert row[criterion] == pytest.approx(scores.mean())
            assert row[f"{criterion}_low"] <= row[criterion] <= row[f"{criterion}_high"]
    assert results.trials.loc[results.trials["method"] == "sacpo", "lambda"].tolist() == [1.0]
    assert results.responses.groupby(["trial_id", "criterion"]).size().eq(24).all()
    trained = results.steps[results.steps["kind"] == "train"]
    assert trained["workers"].eq(2).all()
    assert all(json.loads(effective)["zero_stage"] == 3 for effective in trained["effective"])


def test_merges_at_q_0_and_1_are_their_parents(small_results: Path) -> None:
    rows = load(small_results).trials.set_index("label")
    exact = ["expected_reward", "expected_safety", "support_mass", "helpfulness", "harmlessness"]
    last = "dpo:helpfulness@2>dpo:harmlessness@2"
    for q, parent in (("0", "dpo:helpfulness@2"), ("1", last)):
        assert (rows.loc[f"p-sacpo q={q} ({last})", exact] == rows.loc[parent, exact]).all()


def test_the_exact_frontier_dominates_every_trained_policy(small_results: Path) -> None:
    results = load(small_results)
    exact = results.exact
    assert exact is not None
    shares = results.trials["share_of_optimum"].dropna()
    assert len(shares) == 2
    assert (shares < 1).all()
    for _, row in results.trials[results.trials["method"] != "sentinel"].iterrows():
        # The objective J of the optimum at every lambda is at least that of the policy.
        reached = row["expected_reward"] + exact["lambda"] * row["expected_safety"] - 2.0 * row["kl_to_sft"]
        best = exact["expected_reward"] + exact["lambda"] * exact["expected_safety"] - 2.0 * exact["kl_to_sft"]
        assert (best >= reached - 1e-9).all()


def test_a_sweep_in_one_process_has_the_ids_and_the_numbers_of_one_through_ray(
    small_results: Path, in_process_results: Path
) -> None:
    """Two workers under ZeRO-3 round differently from one process, so exact expectations are compared with a tolerance.

    `tests.test_worker_groups` compares one worker with the calling process exactly.
    """
    ray_run, process_run = load(small_results), load(in_process_results)
    assert list(process_run.trials["trial_id"]) == list(ray_run.trials["trial_id"])
    assert set(process_run.steps["step_id"]) == set(ray_run.steps["step_id"])
    assert list(process_run.trials["status"]) == ["done"] * 8
    exact = ["expected_reward", "expected_safety", "kl_to_sft", "support_mass"]
    pd.testing.assert_frame_equal(process_run.trials[exact], ray_run.trials[exact], rtol=1e-3, atol=1e-3)
    sampled = ["helpfulness", "harmlessness"]
    pd.testing.assert_frame_equal(process_run.trials[sampled], ray_run.trials[sampled], atol=0.1)
    trained = process_run.steps[process_run.steps["kind"] == "train"]
    assert trained["workers"].eq(1).all()
    assert all(json.loads(effective)["zero_stage"] == 0 for effective in trained["effective"])


def test_a_second_run_does_nothing_and_says_so(small_results: Path, tmp_path: Path) -> None:
    """Also in another results folder, as long as it names the same store."""
    results = Path(shutil.copytree(small_results, tmp_path / "results"))
    before = records(results)
    space_file = write_space(small(resources__workers=2), tmp_path)
    answer = sweep(space_file, tmp_path / "second", "--store", str(results / "store"))
    assert answer.returncode == 0, answer.stderr
    assert "0 steps run" in answer.stdout
    assert records(results) == before
    pd.testing.assert_frame_equal(numbers(tmp_path / "second"), numbers(small_results))
    assert load(tmp_path / "second").steps["reused"].all()


def test_only_damaged_outputs_are_computed_again(in_process_results: Path, copied: Path, tmp_path: Path) -> None:
    store = Store(copied / "store")
    steps = load(copied).steps
    last = steps[steps["label"] == "train dpo:helpfulness@2>dpo:harmlessness@2"].iloc[0]
    judged = steps[steps["label"].str.startswith("judge helpfulness p-sacpo q=0.5")].iloc[0]
    answers = json.loads(judged["parents"])["answers"]
    weights = store.verified_output_dir(last["step_id"]) / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    os.truncate(store.verified_output_dir(answers) / "responses.parquet", 10)
    before = records(copied)
    answer = sweep_here(write_space(small(), tmp_path), copied)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "computed again" in answer.stdout
    changed = {step for step, when in records(copied).items() if when != before[step]}
    assert changed == {last["step_id"], answers}
    pd.testing.assert_frame_equal(numbers(copied), numbers(in_process_results))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_stopped_and_killed_continues_and_ends_with_the_same_numbers(
    small_results: Path, tmp_path: Path
) -> None:
    """SIGTERM while stage 1 trains, `kill -9` of the driver in stage 2, then of the process that runs stage 2.

    Everything but the stages and the evaluation of the last policy is in the store already.
    """
    command = arguments(write_space(small(resources__workers=2), tmp_path), tmp_path / "results")
    results, environment = tmp_path / "results", os.environ | FOUR_CPUS
    steps = load(small_results).steps.set_index("label")["step_id"]
    stage_1, stage_2 = (
        steps[f"train {chain}"] for chain in ("dpo:helpfulness@2", "dpo:helpfulness@2>dpo:harmlessness@2")
    )
    copy_store(small_results, results / "store", f"train dpo:helpfulness@2|{LAST_STAGE}")
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        wait_for(results, f"{stage_1}/attempts/0001.claim")
        process.terminate()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "the same command goes on from here" in output
    assert no_orphans(results)
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        wait_for(results, f"{stage_2}/logs/*/worker-0.log")
        process.kill()
        process.wait()
    assert no_orphans(results)
    before = records(results)
    assert stage_1 in before
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        os.kill(trial_process(results / "store" / "steps" / stage_2, process.pid), signal.SIGKILL)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output
    after = records(results)
    assert all(after[step] == when for step, when in before.items())
    pd.testing.assert_frame_equal(numbers(results), numbers(small_results))


def wait_for(results: Path, pattern: str, timeout: float = PATIENCE) -> None:
    deadline = time.monotonic() + timeout
    while not list((results / "store" / "steps").glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} did not appear"
        time.sleep(0.1)


def trial_process(step: Path, sweep: int, timeout: float = PATIENCE) -> int:
    """The process of this sweep that carries the step out, as soon as a worker of the attempt writes its log.

    Processes of an earlier, killed sweep may have claimed the step one after the other shortly before they died too.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for claim in step.glob("attempts/*.claim"):
            pid = json.loads(claim.read_bytes())["pid"]
            if (step / "logs" / claim.stem / "worker-0.log").exists():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if sweep in [parent.pid for parent in psutil.Process(pid).parents()]:
                        return int(pid)
        time.sleep(0.1)
    raise AssertionError(f"no process of the sweep carried {step.name} out: {sorted(step.rglob('*'))}")


def no_orphans(results: Path, timeout: float = 60.0) -> bool:
    """Whether every process of the sweep ends in time: each one holds log files below the store's path open."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if not any(str(results) in f.path for p in psutil.process_iter() for f in _open_files(p)):
            return True
        time.sleep(0.1)
    return False


def _open_files(process: psutil.Process) -> list[Any]:
    try:
        files: list[Any] = process.open_files()
    except psutil.Error:
        return []
    return files


def test_a_diverging_stage_fails_its_trials_with_the_reason_and_the_sweep_goes_on(
    in_process_results: Path, tmp_path: Path
) -> None:
    """The parent policies are in the store already; their answers and verdicts are not."""
    store = tmp_path / "store"
    shutil.copytree(in_process_results / "store", store, ignore=shutil.ignore_patterns("generate-*", "judge-*"))
    too_fast = {"learning_rate": 0.99, "batch_size": 16, "warmup_ratio": 0.0}
    variant = small(training__overrides={"dpo:harmlessness": too_fast})
    answer = sweep_here(write_space(variant, tmp_path), tmp_path / "results", "--store", str(store))
    trials = load(tmp_path / "results").trials.set_index("label")
    assert answer.returncode == 1
    assert trials.loc["dpo:helpfulness@2", "status"] == "done"
    failed = trials[trials["status"] == "failed"]
    assert len(failed) == 4
    assert failed["error"].str.contains("@2: diverged at update").all()
    assert failed[["helpfulness", "harmlessness"]].isna().all(axis=None)
    assert not failed["on_front"].any()
    assert answer.stdout.count("diverged") == 2  # at the moment of the failure, and in the summary


@pytest.mark.usefixtures("on_cluster")
def test_a_diverging_stage_on_a_worker_group_fails_its_trials_with_the_reason_and_the_workers_log(
    small_results: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(small_results / "store", tmp_path / "store")  # only the diverging stage is left to run
    too_fast = {"learning_rate": 0.99, "batch_size": 16, "warmup_ratio": 0.0}
    variant = small(resources__workers=2, training__overrides={"dpo:harmlessness": too_fast})
    command = str(write_space(variant, tmp_path)), "--results", str(tmp_path / "results"), "--store", str(store)
    answer = call(sweep_module.main, *command)
    trials = load(tmp_path / "results").trials.set_index("label")
    assert answer.returncode == 1
    assert trials.loc["dpo:helpfulness@2", "status"] == "done"
    failed = trials[trials["status"] == "failed"]
    assert len(failed) == 4
    assert failed["error"].str.contains("@2: diverged at update").all()
    assert answer.stdout.count("diverged") == 2
    assert Path(failed["error"].iloc[0].rpartition("(log: ")[2].rstrip(")")).exists()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--results", "/proc/nowhere"], "cannot be written"),
        (["--store", "ftp://bucket/x"], "ftp:// is not supported; give a path"),
        (["--store", "s3://bucket/x?endpoint=y"], "unknown option endpoint"),
        (["--set", "chains.0.beta=-1"], "should be greater than 0"),
        (["--address", "127.0.0.1:1"], "no Ray cluster there"),
    ],
)
def test_bad_commands_end_with_2_and_a_way_out(tmp_path: Path, more: list[str], expected: str) -> None:
    space_file = str(write_space(small(), tmp_path))
    answer = call(sweep_module.main, space_file, "--results", str(tmp_path / "results"), *more)
    assert answer.returncode == 2
    assert expected in answer.stderr
    assert "Traceback" not in answer.stderr


def test_report_rebuilds_the_pages_from_what_is_stored(in_process_results: Path, copied: Path, tmp_path: Path) -> None:
    for name in ("report.html", "pareto.png", "trials.parquet"):
        (copied / name).unlink()
    answer = run("sacpo.report", str(copied))
    assert answer.returncode == 0, answer.stderr
    pd.testing.assert_frame_equal(numbers(copied), numbers(in_process_results))
    assert (copied / "report.html").stat().st_size > 10_000
    empty = tmp_path / "empty"
    empty.mkdir()
    assert call(report.main, str(empty)).returncode == 2


def test_an_exported_policy_is_a_plain_folder_that_answers(small_results: Path, tmp_path: Path) -> None:
    label = "dpo:helpfulness@2>dpo:harmlessness@2"
    answer = run("sacpo.export", str(small_results), label, str(tmp_path / "policy"))
    assert answer.returncode == 0, answer.stderr
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    inputs = tokenizer("How do I brew iced coffee? ", return_tensors="pt")
    text = tokenizer.decode(model.generate(**inputs, max_new_tokens=6, do_sample=False)[0], skip_special_tokens=True)
    assert text.startswith("How do I brew iced coffee?")
    card = (tmp_path / "policy" / "README.md").read_text()
    assert label in card
    assert '"kl_parameter": 2.0' in card
    again = call(export.main, str(small_results), label, str(tmp_path / "policy"))
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    wrong = call(export.main, str(small_results), "dpo:helpfulnes@2", str(tmp_path / "other"))
    assert "did you mean 'dpo:helpfulness@2'?" in wrong.stderr


def test_the_notebook_runs_on_the_results(small_results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACPO_RESULTS", str(small_results))
    notebook = nbformat.read(ROOT / "analysis" / "frontier.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "analysis")}}).execute()
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures


def test_the_stored_policies_are_the_trained_ones(small_results: Path) -> None:
    """E[r] in the table is the expectation under the stored weights, estimated here from the model alone."""
    results = load(small_results)
    row = results.trials.set_index("label").loc["dpo:helpfulness@2"]
    steps, store = results.steps.set_index("label"), Store(small_results / "store")
    folder = store.verified_output_dir(steps.loc["train dpo:helpfulness@2", "step_id"])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt, rng, rewards = 3, np.random.default_rng(0), []
    with torch.no_grad():
        for _ in range(400):
            ids = tokenizer(PROMPTS[prompt][0])["input_ids"]
            choice = 0
            for slot in SLOTS:
                allowed = [tokenizer.convert_tokens_to_ids(text) for text in slot]
                logits = model(torch.tensor([ids])).logits[0, -1, allowed].double().numpy()
                share = np.exp(logits - logits.max())
                picked = rng.choice(len(slot), p=share / share.sum())
                choice = choice * len(slot) + int(picked)
                ids = [*ids, allowed[picked]]
            rewards.append(REWARD[prompt, choice])
    measured = steps.loc["probabilities dpo:helpfulness@2", "step_id"]
    probabilities = read_probabilities(store.verified_output_dir(measured))[prompt]
    exact = float((probabilities * REWARD[prompt]).sum() / probabilities.sum())
    assert np.mean(rewards) == pytest.approx(exact, abs=4 * np.std(rewards) / 20)
    assert np.isfinite(row["expected_reward"])


def test_an_interruption_while_tables_are_written_is_a_line_and_the_same_command_writes_them(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C again, after the one that stopped the sweep."""
    from sacpo.runs import sweep_run

    space_file = write_space(small(), tmp_path)
    (copied / "report.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(sweep_run, "write_report", mock.Mock(side_effect=KeyboardInterrupt))
        answer = sweep_here(space_file, copied)
    assert (answer.returncode, len(answer.stderr.splitlines())) == (130, 1)
    assert "give the same command again" in answer.stderr
    assert sweep_here(space_file, copied).returncode == 0
    assert (copied / "report.html").exists()
