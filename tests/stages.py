"""One training stage of the small space, by any executor: what the tests of training compare."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from sacpo.execution import in_process
from sacpo.execution.artifacts import REFERENCE
from sacpo.execution.runner import Executor, Runner
from sacpo.hashing import file_digest
from sacpo.planning.metrics import TrainMetrics
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.planning.records import StepRecord, TrainEffective
from sacpo.store.step_store import Store
from tests.spaces import space


@dataclass(frozen=True)
class Stage:
    """A trained stage: its record, its output folder and its store."""

    record: StepRecord
    output: Path
    store: Store

    @property
    def metrics(self) -> TrainMetrics:
        """Metrics of the training."""
        metrics: TrainMetrics = train_metrics(self.record)
        return metrics

    @property
    def effective(self) -> TrainEffective:
        """Effective settings of the training."""
        assert isinstance(self.record.effective, TrainEffective)
        return self.record.effective

    def losses(self) -> list[float]:
        """The loss of every update."""
        return [entry["loss"] for entry in json.loads((self.output / "history.json").read_text())]

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights."""
        return load_file(self.output / "model.safetensors")


def train_metrics(record: StepRecord) -> Any:
    """Metrics of a training step that made updates (`TrainMetrics`)."""
    assert isinstance(record.metrics, TrainMetrics)
    assert record.metrics.throughput is not None
    return record.metrics


TrainStage = Callable[..., Stage]
Expect = Callable[[str], None]
"""Announces a stage by its id (the fixture `worker_group`)."""


def stage_plan(method: str = "dpo", seed: int = 0, **changes: Any) -> Plan:
    """A plan with one stage, `METHOD:helpfulness`, after the SFT policy."""
    chain = [{"chain": f"{method}:helpfulness", "beta": 2.0}]
    if method == "kto":
        changes["training__kto"] = {"learning_rate": 1e-3, "batch_size": 64, "epochs": 2, "kl_batch_size": 64}
    return make_plan(space(chains=chain, merges=[], seeds=[seed], **changes))


def make_base(root: Path, execute: Executor, **resources: Any) -> Path:
    """A store in which all inputs of the stages are done; every stage trains in a copy of its own.

    Args:
        root: Folder of the store.
        execute: Executor of the steps that compute reference log-probabilities; others run in the calling process.
        resources: Settings of the plan, such as `resources__workers`.
    """
    for method in ("dpo", "kto"):
        plan = stage_plan(method, **resources)
        reference = plan.steps[plan.trials[1].policy["policy"]].parents["reference"]
        for parent in plan.steps[reference].parents.values():
            Runner(plan, Store(root), "base", in_process.execute).ensure(parent)
        Runner(plan, Store(root), "base", execute).ensure(reference)
    return root


def train_in(root: Path, base: Path, execute: Executor, method: str = "dpo", **changes: Any) -> Stage:
    """Train the helpfulness stage of a variant of the small space, in a copy of the base store at `root`."""
    shutil.copytree(base, root, dirs_exist_ok=True)
    plan, store = stage_plan(method, **changes), Store(root)
    step = plan.trials[1].policy["policy"]
    record = Runner(plan, store, "test", execute).ensure(step)
    return Stage(record, store.verified_output_dir(step), store)


def trained_once(base: Path, execute: Executor, folders: pytest.TempPathFactory) -> TrainStage:
    """`train_in`, once per variant for all tests that use it."""
    return functools.cache(lambda *method, **changes: train_in(folders.mktemp("s"), base, execute, *method, **changes))


def change_reference(
    base: Path, root: Path, execute: Executor, change: Callable[[list[float]], list[float]]
) -> tuple[Runner, str]:
    """Copy the base store and change the precomputed reference of the helpfulness stage.

    Args:
        base: The base store.
        root: Where to copy it.
        execute: Executor of the runner.
        change: From the log-probabilities of the chosen answers to the changed ones.

    Returns:
        A runner on the copy, and the id of the stage, which is not trained yet.
    """
    shutil.copytree(base, root / "store")
    plan, store = stage_plan(), Store(root / "store")
    runner = Runner(plan, store, "test", execute)
    step = plan.steps[plan.trials[1].policy["policy"]]
    reference = step.parents["reference"]
    runner.ensure(reference)
    path = store.verified_output_dir(reference) / REFERENCE
    table = pq.read_table(path)
    values = pa.array(change(table["ref_chosen_logps"].to_pylist()), pa.float32())
    pq.write_table(table.set_column(table.column_names.index("ref_chosen_logps"), "ref_chosen_logps", values), path)
    record = store.step_dir(reference) / "record.json"
    content = json.loads(record.read_text())
    content["files"][REFERENCE] = file_digest(path)
    record.write_text(json.dumps(content))
    return runner, step.id
