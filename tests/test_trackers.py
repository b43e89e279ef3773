"""Trackers get one run for each trial, through real clients; one that is down changes nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sacpo.errors import SacpoError
from sacpo.planning.planner import make_plan
from sacpo.reporting.trackers import feed
from sacpo.reporting.trackers.runs import trial_runs
from sacpo.results import load
from sacpo.results.kept_plan import read_kept_plan
from sacpo.spaces.loading import parse_space
from sacpo.store.step_store import Store
from tests.commands import sweep, sweep_here, write_space
from tests.spaces import small, space

_READ_TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
runs = trackio.Api().runs("small")
logs = {run.name: SQLiteStorage.get_logs("small", run.name, run_id=run.id) for run in runs}
print(json.dumps({run.name.rpartition(" ")[0]: {"config": run.config, "logs": logs[run.name]} for run in runs}))
"""
LAST = "dpo:helpfulness@2>dpo:harmlessness@2"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local MLflow store, a local Trackio, and W&B offline; returns the folder of the first."""
    store = tmp_path / "mlflow"
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    monkeypatch.setenv("WANDB_MODE", "offline")
    return store


@pytest.mark.slow  # W&B's client takes seconds for each run
def test_every_tracker_gets_curves_win_rates_and_the_front_once(copied: Path, tmp_path: Path, offline: Path) -> None:
    file = write_space(small(report={"to": ["tensorboard", "mlflow", "wandb", "trackio"]}), tmp_path)
    answer = sweep(file, copied, "--address", "in-process")  # Trackio reads its folder's name when it is imported
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "WARNING tracker" not in answer.stdout
    rows = load(copied).trials.set_index("label")
    updates = 512 // 64

    def check_tensorboard() -> None:
        (folder,) = (copied / "tensorboard").glob("dpo_*harmlessness*")
        events = EventAccumulator(str(folder)).Reload()
        loss = events.Scalars("2-dpo-harmlessness/loss")
        assert [event.step for event in loss] == list(range(1, updates + 1))
        assert events.Scalars("helpfulness_low")[0].value == pytest.approx(rows.loc[LAST, "helpfulness_low"])
        (front,) = (copied / "tensorboard").glob("small-*")
        assert EventAccumulator(str(front)).Reload().Images("front")

    client = MlflowClient(offline.as_uri())
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None

    def check_mlflow() -> None:
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        assert set(runs) == {*rows.index, "small"}
        last, parent = runs[LAST], runs["small"]
        assert last.info.status == "FINISHED"
        assert last.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert last.data.metrics["helpfulness_high"] == pytest.approx(rows.loc[LAST, "helpfulness_high"])
        assert len(client.get_metric_history(last.info.run_id, "2-dpo-harmlessness/margin")) == updates
        files = {file.path for file in client.list_artifacts(parent.info.run_id)}
        assert files == {"config.json", "pareto.png", "trials.csv"}

    def check_trackio() -> None:
        runs = json.loads(subprocess.check_output([sys.executable, "-c", _READ_TRACKIO]))
        last = runs[LAST]
        assert set(runs) == {*rows.index, "small"}
        assert {run["config"]["_Group"] for run in runs.values()} == {last["config"]["_Group"]}
        assert last["config"]["status"] == "done"
        assert last["config"]["space"]["name"] == "small"
        loss = [log["step"] for log in last["logs"] if "2-dpo-harmlessness/loss" in log]
        assert loss == list(range(1, updates + 1))
        (low,) = [log["helpfulness_low"] for log in last["logs"] if "helpfulness_low" in log]
        assert low == pytest.approx(rows.loc[LAST, "helpfulness_low"])
        (front,) = [log["front"] for log in runs["small"]["logs"] if "front" in log]
        assert (tmp_path / "trackio/media" / front["file_path"]).read_bytes() == (copied / "pareto.png").read_bytes()

    check_tensorboard()
    check_mlflow()
    check_trackio()
    wandb_runs = {path.name.rpartition("-")[2] for path in (copied / "wandb").glob("offline-run-*")}
    assert len(wandb_runs) == len(rows) + 1
    before = len(list((copied / "wandb").glob("offline-run-*")))
    assert sweep(file, copied, "--address", "in-process").returncode == 0  # the same command again sends nothing twice
    check_tensorboard()
    check_mlflow()
    check_trackio()
    assert len(list((copied / "wandb").glob("offline-run-*"))) == before


def test_a_tracker_that_is_down_gives_one_warning_and_gets_the_rest_later(
    copied: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store, results = read_kept_plan(copied), Store(copied / "store"), load(copied)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    trackers = feed.Trackers(["mlflow", "tensorboard"], plan, store, copied)
    for _ in range(3):
        trackers.update(results)
    (warning,) = trackers.close(results)
    assert warning.startswith("tracker mlflow: ")
    assert len(json.loads((copied / "tracker-tensorboard.json").read_text())) == len(plan.trials) + 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", offline.as_uri())
    assert feed.Trackers(["mlflow"], plan, store, copied).close(results) == []
    assert len(json.loads((copied / "tracker-mlflow.json").read_text())) == len(plan.trials) + 1


def test_a_run_names_the_logs_of_its_stages_and_the_reason_of_a_failure(copied: Path) -> None:
    plan, store, results = read_kept_plan(copied), Store(copied / "store"), load(copied)
    merge = "p-sacpo q=0.5 (dpo:helpfulness@2>dpo:harmlessness@2)"
    stages = [step.id for step in plan.steps.values() if step.kind == "train"]
    for step in stages:
        (store.log_dir(step) / "0001").mkdir(parents=True)
        (store.log_dir(step) / "0001" / "worker-0.log").write_text("what it printed")
    failed = results.trials["label"] == merge
    results.trials.loc[failed, results.trials.columns[results.trials.dtypes == "float64"]] = float("nan")
    results.trials.loc[failed, ["status", "error"]] = "failed", "generate: the reason"
    runs = {run.name: run for run in trial_runs(plan, store, results)}
    assert {Path(log).parents[2].name for log in runs[LAST].config["logs"].values()} == set(stages)
    assert not runs[merge].curves
    assert not runs[merge].values
    assert runs[merge].config["error"] == "generate: the reason"
    assert feed.Trackers(["tensorboard"], plan, store, copied).close(results) == []
    assert runs[merge].key in json.loads((copied / "tracker-tensorboard.json").read_text())


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TRACKIO_DIR", "{file}/below", "nothing could be written to {file}/below"),
        ("TRACKIO_SERVER_URL", "http://127.0.0.1:9/?write_token=t", "the server did not take all"),
    ],
)
def test_what_trackio_cannot_write_is_told(
    variable: str, value: str, reason: str, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    space_file = write_space(small(report={"to": ["trackio"]}), tmp_path)
    environment = {"TRACKIO_DIR": str(tmp_path / "trackio"), variable: value.format(file=file)}
    for name, content in environment.items():
        monkeypatch.setenv(name, content)
    answer = sweep(space_file, copied, "--address", "in-process")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"WARNING tracker trackio: {reason.format(file=file)}" in answer.stdout


def test_the_space_goes_before_the_environment() -> None:
    set_up = {"WANDB_PROJECT": "p", "MLFLOW_TRACKING_URI": "http://m"}
    assert feed.trackers_of(space(), {}) == []
    assert feed.trackers_of(space(), {"WANDB_API_KEY": "alone it asks for nothing"}) == []
    assert feed.trackers_of(space(), set_up) == ["wandb", "mlflow"]
    assert feed.trackers_of(space(), {"TRACKIO_PROJECT": "p"}) == ["trackio"]
    assert feed.trackers_of(space(report={"to": []}), set_up) == []
    assert feed.trackers_of(space(report={"to": ["tensorboard"]}), set_up) == ["tensorboard"]


def test_reporting_changes_no_step() -> None:
    reported = make_plan(space(report={"to": ["wandb"]}))
    assert reported.plan_id == make_plan(space()).plan_id
    assert reported.steps.keys() == make_plan(space()).steps.keys()


def test_a_missing_package_and_an_unknown_tracker_are_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    answer = sweep_here(write_space(small(report={"to": ["wandb"]}), tmp_path), tmp_path / "results")
    assert answer.returncode == 2
    assert "pip install 'sacpo[wandb]'" in answer.stderr
    assert not (tmp_path / "results").exists()
    with pytest.raises(SacpoError, match=r"report\.to"):
        parse_space(small(report={"to": ["neptune"]}))
