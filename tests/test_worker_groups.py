"""Training on Ray Train's worker groups: any number of workers gives the same numbers, and a killed worker is replaced.

Two workers train under DeepSpeed ZeRO-3 over gloo. `tests.test_training` has the tests of training by itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from sacpo.cluster import executor
from sacpo.cluster.workdir import workdir_root
from sacpo.errors import StepError
from sacpo.execution import in_process
from sacpo.store.step_store import Store
from tests.killing import known_checkpoints, train_workers
from tests.spaces import ROOT
from tests.stages import Expect, Stage, TrainStage, make_base, stage_plan, train_in, trained_once

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), executor.execute, resources__workers=2)


@pytest.fixture(scope="module")
def train(base: Path, worker_group: Expect, tmp_path_factory: pytest.TempPathFactory) -> TrainStage:
    """Train a variant on a worker group, which waits for the next one."""
    trained = trained_once(base, executor.execute, tmp_path_factory)

    def train(*method: str, **changes: Any) -> Stage:
        worker_group(stage_of(*method, **changes))
        return trained(*method, **changes)

    return train


def stage_of(*method: str, **changes: Any) -> str:
    """Id of a variant's stage."""
    return str(stage_plan(*method, **changes).trials[1].policy["policy"])


@pytest.fixture(scope="module")
def train_here(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainStage:
    """Train a variant in the calling process."""
    return trained_once(base, in_process.execute, tmp_path_factory)


def test_one_worker_gives_exactly_the_numbers_of_the_calling_process(train: TrainStage, train_here: TrainStage) -> None:
    changes = {"resources__workers": 1, "resources__sharding": "ddp"}
    there, here = train(**changes), train_here(**changes)
    assert there.record.step_id == here.record.step_id
    assert there.effective == here.effective
    assert there.losses() == here.losses()
    assert all(torch.equal(value, here.weights()[name]) for name, value in there.weights().items())


def test_two_zero3_workers_equal_one_process_with_twice_the_accumulation(
    train: TrainStage, train_here: TrainStage
) -> None:
    """One comparison for both promises: neither the number of workers nor the sharding changes the result."""
    changes = {"resources__workers": 2, "resources__per_device_batch": 16}
    two, one = train(**changes), train_here(**changes)
    assert (two.effective.world_size, two.effective.accumulation, two.effective.zero_stage) == (2, 2, 3)
    assert (one.effective.world_size, one.effective.accumulation, one.effective.zero_stage) == (1, 4, 0)
    assert two.record.step_id == one.record.step_id
    assert two.record.workers == 2
    assert two.losses() == pytest.approx(one.losses(), rel=1e-3)
    for name, value in two.weights().items():
        torch.testing.assert_close(value, one.weights()[name], rtol=1e-3, atol=1e-4)


def test_a_later_stage_trains_in_the_processes_of_the_one_before(train: TrainStage) -> None:
    """The tests that follow compare what it trained with other stages."""
    train(resources__workers=2, resources__per_device_batch=16)
    processes = set(train_workers())
    assert len(processes) == 2
    later = train("kto", resources__workers=2)
    assert set(train_workers()) == processes
    assert later.metrics.start_seconds["process"] < 0.5
    assert later.record.workers == 2


def test_an_offloaded_optimizer_changes_no_number(train: TrainStage) -> None:
    changes = {"resources__workers": 2, "resources__per_device_batch": 16}
    offloaded, kept = train(resources__optimizer_offload=True, **changes), train(**changes)
    assert offloaded.record.step_id == kept.record.step_id
    assert offloaded.losses() == pytest.approx(kept.losses(), rel=1e-6)


def test_the_start_of_a_worker_is_measured_by_part(train: TrainStage) -> None:
    stage = train(resources__workers=2, resources__per_device_batch=16)
    parts = stage.metrics.start_seconds
    assert set(parts) == {"process", "imports", "group", "trainer", "engine"}
    assert sum(parts.values()) == pytest.approx(stage.record.first_update_at - stage.record.started_at)
    assert not list(stage.output.glob("*.bin"))
    assert {path.suffix for path in stage.output.iterdir()} <= {".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_precomputed_reference_gives_the_losses_of_a_live_one(method: str, train: TrainStage) -> None:
    """With two workers: both references are sharded."""
    precomputed = train(method, resources__workers=2)
    live = train(method, resources__workers=2, resources__reference="live")
    assert precomputed.record.step_id == live.record.step_id
    assert precomputed.losses() == pytest.approx(live.losses(), rel=1e-4)
    assert precomputed.losses()[-1] < precomputed.losses()[0]
    assert precomputed.metrics.updates == len(precomputed.losses())
    assert precomputed.metrics.reference_max_difference is not None
    assert precomputed.metrics.reference_max_difference < 1e-3
    assert live.metrics.reference_max_difference is None
    reference = precomputed.store.record(precomputed.record.parents["reference"])
    assert reference is not None
    assert reference.workers == 2


@pytest.mark.parametrize("damaged", [None, "*/*/**/*.pt"], ids=["", "damaged"])
def test_a_killed_worker_costs_no_more_than_a_checkpoint_interval(
    train: TrainStage, worker_group: Expect, base: Path, tmp_path: Path, damaged: str | None
) -> None:
    """`kill -9` of one of two workers: the stage resumes and ends with the weights of a stage without a kill.

    If the checkpoint was truncated meanwhile, it is not used: the stage starts from its beginning. `test_group_reuse`
    has the other files of a checkpoint, each of which raises the same error.
    """
    changes = {"resources__workers": 2, "resources__checkpoint_steps": 8, "training__dpo__epochs": 6}
    intact = train(**changes)
    step = stage_of(**changes)
    worker_group(step)
    killed, truncated = threading.Event(), list[Path]()

    def kill() -> None:
        checkpoints = Path(Store(tmp_path).checkpoint_uri(step))
        while not known_checkpoints(checkpoints):
            time.sleep(0.05)
        os.kill(train_workers()[0], signal.SIGKILL)
        for path in checkpoints.glob(damaged) if damaged else ():
            os.truncate(path, path.stat().st_size // 2)
            truncated.append(path)
        killed.set()

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    stage = train_in(tmp_path, base, executor.execute, **changes)
    assert killed.is_set()
    assert stage.metrics.resumed is not bool(damaged)
    assert bool(truncated) is bool(damaged)
    assert not list(workdir_root().glob(f"{step}-*")), "the folder of the killed worker is removed too"
    assert stage.losses() == intact.losses()
    assert all(torch.equal(value, intact.weights()[name]) for name, value in stage.weights().items())


def test_a_diverged_stage_fails_with_its_reason_and_holds_no_resources(train: TrainStage) -> None:
    with pytest.raises(StepError, match=r"diverged at update \d+ of \d+: the loss is .*try a smaller") as raised:
        train(training__dpo__learning_rate=0.99, training__dpo__max_grad_norm=1e9, resources__workers=2)
    assert "died" not in str(raised.value), "the stage fails at once and is not restarted"
    assert all_resources_free()


def all_resources_free(timeout: float = 60.0) -> bool:
    """Whether all CPUs become free and all placement groups are removed within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        groups = [g for g in ray.util.placement_group_table().values() if g["state"] in ("CREATED", "PENDING")]
        if ray.available_resources().get("CPU") == 2.0 and not groups:
            return True
        time.sleep(0.1)
    return False


def test_a_lock_file_of_a_killed_build_blocks_no_later_stage() -> None:
    """torch leaves this file behind if the build of DeepSpeed's operator is killed, and would wait for it forever."""
    code = (
        "import os, sys; from pathlib import Path; os.environ['DS_ACCELERATOR'] = 'cpu'; "
        "os.environ['PATH'] = f'{Path(sys.executable).parent}:' + os.environ['PATH']; "
        "from sacpo.compat.deepspeed import load_operator, operator_folder; guard = operator_folder() / 'lock'; "
        "guard.touch(); load_operator(); assert not guard.exists()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200, cwd=ROOT)
