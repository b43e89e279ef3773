"""What one worker group trains: the same numbers however the work is spread, and what was asked for.

These run real Ray Train worker groups with TRL's trainers under DeepSpeed ZeRO-3 over gloo.
"""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file

from sacpo.cluster import executor
from sacpo.cluster.workdir import place
from sacpo.errors import StepError
from sacpo.execution.runner import Runner
from sacpo.planning.identity import file_digest
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.steps.train import class_weights
from sacpo.store.step_store import Record, Store
from tests.killing import SNAPSHOT, known, train_workers
from tests.spaces import ROOT, space

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the SFT policy and the data are done; each test goes on in a copy of its own."""
    root = tmp_path_factory.mktemp("base")
    plan = make_plan(space())
    runner = Runner(plan, Store(root), "base", executor.execute)
    for step in plan.steps.values():
        if step.kind == "data":
            runner.ensure(step.id)
    return root


def train_in(root: Path, base: Path, method: str = "dpo", **changes: Any) -> tuple[Record, Path, Store]:
    """Train the helpfulness stage of a variant of the small space, from the shared SFT policy and data."""
    shutil.copytree(base, root, dirs_exist_ok=True)
    plan, store = stage_plan(method, **changes), Store(root)
    step = plan.trials[1].policy["policy"]
    record = Runner(plan, store, "test", executor.execute).ensure(step)
    return record, store.output(step), store


@pytest.fixture(scope="module")
def train(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Record, Path, Store]]:
    """The same, once for all tests that ask for the same variant."""
    return functools.cache(lambda *method, **changes: train_in(tmp_path_factory.mktemp("s"), base, *method, **changes))


def stage_plan(method: str = "dpo", seed: int = 0, **changes: Any) -> Plan:
    chain = [{"chain": f"{method}:helpfulness", "beta": 2.0}]
    if method == "kto":
        changes["training__kto"] = {"learning_rate": 1e-3, "batch_size": 64, "epochs": 2, "kl_batch_size": 64}
    return make_plan(space(chains=chain, merges=[], seeds=[seed], **changes))


def losses(output: Path) -> list[float]:
    return [entry["loss"] for entry in json.loads((output / "history.json").read_text())]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def test_two_zero3_workers_equal_one_ddp_worker_with_twice_the_accumulation(
    train: Callable[..., tuple[Record, Path, Store]],
) -> None:
    """One comparison for both promises: more workers change nothing, and sharding changes nothing."""
    two, two_output, _ = train(resources__workers=2, resources__per_device_batch=16)
    one, one_output, _ = train(resources__workers=1, resources__per_device_batch=16, resources__sharding="ddp")
    assert (two["effective"]["world_size"], two["effective"]["accumulation"]) == (2, 2)
    assert (one["effective"]["world_size"], one["effective"]["accumulation"]) == (1, 4)
    assert (two["effective"]["engine_zero_stage"], one["effective"]["zero_stage"]) == (3, 0)
    assert two["step_id"] == one["step_id"]
    assert losses(two_output) == pytest.approx(losses(one_output), rel=1e-3)
    for name, value in weights(two_output).items():
        torch.testing.assert_close(value, weights(one_output)[name], rtol=1e-3, atol=1e-4)


def test_a_dpo_stage_starts_at_its_reference_changes_every_weight_and_has_what_was_asked(
    base: Path, train: Callable[..., tuple[Record, Path, Store]]
) -> None:
    record, output, store = train(training__dpo__adam_epsilon=1e-6)
    assert losses(output)[0] == pytest.approx(math.log(2), abs=1e-6)  # policy = reference before the first update
    assert losses(output)[-1] < losses(output)[0]
    before = weights(store.output(record["parents"]["policy"]))
    assert all(not torch.equal(value, before[name]) for name, value in weights(output).items())
    settings = record["payload"]["settings"]
    effective = record["effective"]
    assert {key: effective[key] for key in settings if key in effective} == {
        key: value for key, value in settings.items() if key in effective
    }
    assert (effective["kl_parameter"], effective["engine_batch_size"]) == (2.0, 64)
    start = record["metrics"]["start_seconds"]
    assert set(start) == {"process", "imports", "group", "trainer", "engine"}
    assert sum(start.values()) == pytest.approx(record["first_update_at"] - record["started_at"])
    assert not list(output.glob("*.bin"))
    assert {path.suffix for path in output.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_kto_runs_with_two_workers_and_balances_its_classes_once(
    train: Callable[..., tuple[Record, Path, Store]],
) -> None:
    record, output, _ = train("kto", resources__workers=2)
    assert record["metrics"]["updates"] == len(losses(output))
    assert losses(output)[-1] < losses(output)[0]
    _, other_output, _ = train("kto", resources__workers=2, seed=1)
    assert losses(other_output) != losses(output)  # the seed orders the data


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_banked_reference_gives_what_a_live_one_gives(
    method: str, train: Callable[..., tuple[Record, Path, Store]]
) -> None:
    banked, output, store = train(method, resources__workers=2)
    live, live_output, _ = train(method, resources__workers=2, resources__reference="live")
    assert banked["step_id"] == live["step_id"]
    assert losses(output) == pytest.approx(losses(live_output), rel=1e-4)
    assert banked["metrics"]["reference_max_difference"] < 1e-3
    assert live["metrics"]["reference_max_difference"] is None
    bank = store.record(banked["parents"]["reference"])
    assert bank is not None
    assert bank["workers"] == 2
    metrics = banked["metrics"]
    assert metrics["examples_per_second"] == pytest.approx(metrics["updates"] * 64 / metrics["training_seconds"])
    assert metrics["flops_per_second"] == pytest.approx(6 * metrics["parameters"] * metrics["tokens_per_second"])
    assert 0 <= metrics["padding_share"] < 1


def change_bank(base: Path, root: Path, change: Callable[[list[float]], list[float]]) -> tuple[Runner, str]:
    """A store at `root` with other values in the bank of the helpfulness stage; what is to run there."""
    shutil.copytree(base, root / "store")
    plan, store = stage_plan(), Store(root / "store")
    runner = Runner(plan, store, "test", executor.execute)
    step = plan.steps[plan.trials[1].policy["policy"]]
    runner.ensure(step.parents["reference"])
    path = store.output(step.parents["reference"]) / "reference.parquet"
    table = pq.read_table(path)
    values = pa.array(change(table["ref_chosen_logps"].to_pylist()), pa.float32())
    pq.write_table(table.set_column(table.column_names.index("ref_chosen_logps"), "ref_chosen_logps", values), path)
    record = store.folder(step.parents["reference"]) / "record.json"
    content = json.loads(record.read_text())
    content["files"]["reference.parquet"] = file_digest(path)
    record.write_text(json.dumps(content))
    return runner, step.id


def test_a_reference_of_another_policy_is_refused(base: Path, tmp_path: Path) -> None:
    runner, step = change_bank(base, tmp_path, lambda values: [value - 50.0 for value in values])
    with pytest.raises(StepError, match="belong to another policy or other data"):
        runner.ensure(step)


def test_a_loss_that_is_no_number_fails_the_stage_where_it_comes_up(base: Path, tmp_path: Path) -> None:
    """One example's reference is none, in whichever update its turn is."""
    runner, step = change_bank(base, tmp_path, lambda values: [*values[:-1], math.nan])
    with pytest.raises(StepError, match=r"diverged at update [2-8] of 8: the loss is nan"):
        runner.ensure(step)


def test_class_weights_make_both_classes_weigh_the_same() -> None:
    desirable, undesirable = class_weights([True] * 3 + [False] * 9)
    assert (desirable * 3, undesirable * 9) == (9, 9)
    with pytest.raises(StepError, match="4 desirable and 0 undesirable"):
        class_weights([True] * 4)


def test_a_diverged_stage_fails_with_its_reason_and_leaves_nothing_behind(
    train: Callable[..., tuple[Record, Path, Store]],
) -> None:
    with pytest.raises(StepError, match=r"diverged at update \d+ of \d+: the loss is .*try a smaller") as raised:
        train(training__dpo__learning_rate=0.99, training__dpo__max_grad_norm=1e9, resources__workers=2)
    assert "died" not in str(raised.value), "it is told at once, not tried again"
    assert free_again()


def free_again(timeout: float = 60.0) -> bool:
    """Whether all CPUs are free and no placement group is alive within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        groups = [g for g in ray.util.placement_group_table().values() if g["state"] in ("CREATED", "PENDING")]
        if ray.available_resources().get("CPU") == 2.0 and not groups:
            return True
        time.sleep(0.5)
    return False


@pytest.mark.parametrize("damaged", [None, "*/checkpoint_*/**/*.pt", f"*/{SNAPSHOT}"], ids=["", "checkpoint", "list"])
def test_a_killed_worker_costs_no_more_than_a_checkpoint_interval(
    train: Callable[..., tuple[Record, Path, Store]], base: Path, tmp_path: Path, damaged: str | None
) -> None:
    """`kill -9` of one of two workers mid-stage: the stage resumes and ends with the weights of an undisturbed one.

    Where the checkpoint, or the controller's list, was cut off meanwhile, it is not trusted: the stage begins anew.
    """
    changes = {"resources__workers": 2, "resources__checkpoint_steps": 8, "training__dpo__epochs": 15}
    _, calm, _ = train(**changes)
    plan = stage_plan(**changes)
    step = plan.trials[1].policy["policy"]
    killed, cut = threading.Event(), list[Path]()

    def kill() -> None:
        scratch = Path(Store(tmp_path).scratch(step))
        while not known(scratch):
            time.sleep(0.05)
        os.kill(train_workers()[0], signal.SIGKILL)
        for path in scratch.glob(damaged) if damaged else ():
            os.truncate(path, path.stat().st_size // 2)
            cut.append(path)
        killed.set()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    record, output, _ = train_in(tmp_path, base, **changes)
    assert killed.is_set()
    assert record["metrics"]["resumed"] is not bool(damaged)
    assert bool(cut) is bool(damaged)
    assert not list(place().glob(f"{step}-*")), "the killed worker's folder is gone too"
    assert losses(output) == losses(calm)
    assert all(torch.equal(value, weights(calm)[name]) for name, value in weights(output).items())


def test_a_guard_that_a_killed_build_left_behind_holds_nobody_up() -> None:
    """torch's own guard file with no process behind it, for which every later stage would wait for ever."""
    code = (
        "import os, sys; from pathlib import Path; os.environ['DS_ACCELERATOR'] = 'cpu'; "
        "os.environ['PATH'] = f'{Path(sys.executable).parent}:' + os.environ['PATH']; "
        "from sacpo.cluster.trainer import load_operator, operator_folder; guard = operator_folder() / 'lock'; "
        "guard.touch(); load_operator(); assert not guard.exists()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200, cwd=ROOT)
