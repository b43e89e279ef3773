"""Sweeps that lose their controller, a worker node, the head node or their disk in the middle of a stage."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import psutil
import pytest
import ray

from sacpo.cluster import spot
from sacpo.results import load
from tests.commands import arguments, free_port, write_space
from tests.killing import known_checkpoints
from tests.results_folders import LAST_STAGE, copy_store
from tests.spaces import ROOT, small

pytestmark = pytest.mark.slow

T = TypeVar("T")
NUMBERS = ["trial_id", "status", "helpfulness", "harmlessness", "expected_reward", "expected_safety", "kl_to_sft"]
JOBS = [str(Path(sys.executable).with_name("ray")), "job"]
_SMALL = {"object_store_memory": 2**27, "dashboard_agent_listen_port": 0}  # beside other clusters
NODE: dict[str, Any] = {"num_cpus": 2, **_SMALL}


@contextlib.contextmanager
def cluster(**more: Any) -> Iterator[Any]:
    """A head without CPUs for training and one worker node; each node has its own raylet."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    nodes = Cluster(initialize_head=True, head_node_args=head | _SMALL | more)
    nodes.add_node(**NODE)
    try:
        yield nodes
    finally:
        nodes.shutdown()


def wait_until_dead(nodes: Any, node: Any, timeout: float = 60.0) -> None:
    """Wait until the cluster has noticed that the node is gone."""
    from ray._raylet import GcsClient

    client, deadline = GcsClient(address=nodes.address), time.monotonic() + timeout
    while True:
        states = {node_id.hex(): info.state for node_id, info in client.get_all_node_info().items()}
        if states[node.node_id]:  # 0 is alive
            return
        assert time.monotonic() < deadline, f"the cluster still takes {node.node_id} for alive"
        time.sleep(0.1)


def command(folder: Path, results: Path, *more: str) -> list[str]:
    """The command of a small sweep with a checkpoint after every update, so that a kill comes before a stage's end."""
    space = write_space(small(resources__workers=2, resources__checkpoint_steps=1), folder)
    return arguments(space, results, *more)


class Driver:
    """A running sweep command."""

    def __init__(self, folder: Path, results: Path, command: list[str]) -> None:
        self.results, self.output = results, folder / "output"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=os.environ)

    def in_stage(self, label: str, after: str | None = None) -> tuple[str, str]:
        """Wait until a stage has a checkpoint.

        Args:
            label: A part of the stage's payload.
            after: The name of an earlier one, to wait for the next checkpoint.

        Returns:
            The step's id and the name of the checkpoint.
        """

        def checkpoint() -> tuple[str, str] | None:
            for folder in self.results.glob("store/checkpoints/*"):
                payload = self.results / "store" / "steps" / folder.name / "payload.json"
                name = known_checkpoints(folder)
                if name and name != after and label in payload.read_text():
                    return folder.name, name
            return None

        return self.until(checkpoint)

    def until(self, condition: Callable[[], T]) -> T:
        """Wait for the first true value of a condition, while the command runs.

        Raises:
            AssertionError: the command ended, or ten minutes passed; the message holds the output of the command and
                of its training workers.
        """
        deadline = time.monotonic() + 600
        while not (value := condition()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                logs = [self.output, *self.results.glob("store/steps/train-*/logs/*/*.log")]
                raise AssertionError("\n".join(f"{log}\n{log.read_text()[-3000:]}" for log in logs))
            time.sleep(0.1)
        return value

    def end(self) -> int:
        """Wait for the end of the command; its exit status."""
        status = self.process.wait(600)
        print(self.output.read_text())
        return status


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_sweep_outlives_its_controller_its_worker_node_and_its_head(
    small_results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller is killed in the SFT stage, and its node is reclaimed after a notice. The only worker node is
    killed in the first DPO stage, the head node in the second. Other steps are in the store already, except the
    evaluation of the last policy.

    A node that joins gets the work. After the loss of the head node, the same command continues on another cluster, as
    a job that is stopped and submitted once more.
    """
    results = tmp_path / "results"
    # A driver waits so long for a lost head node; Ray's default is a minute.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    copy_store(small_results, results / "store", f"sft|train dpo:helpfulness@2|{LAST_STAGE}")
    with cluster() as first:
        driver = Driver(tmp_path, results, command(tmp_path, results, "--address", first.address))
        stage, before_it = driver.in_stage('"method": "sft"')
        stages = [stage]
        (controller,) = (p for p in psutil.Process().children(recursive=True) if "TrainController" in p.name())
        controller.kill()
        assert driver.in_stage('"method": "sft"', after=before_it)[0] == stage
        (worker,) = first.worker_nodes
        joined = first.add_node(**NODE)
        spot.drain(first.address, worker.node_id, 30)  # returns when the cluster has accepted the notice
        first.remove_node(worker, allow_graceful=False)
        stages.append(driver.in_stage('"objective": "helpfulness"')[0])
        first.remove_node(joined, allow_graceful=False)
        wait_until_dead(first, joined)
        assert driver.process.poll() is None
        first.add_node(**NODE)
        stages.append(driver.in_stage('"objective": "harmlessness"')[0])
        before = finished(results)
        assert set(stages[:2]) <= before.keys()
        first.remove_node(first.head_node, allow_graceful=False)
        assert driver.end() != 0
    with cluster() as second:
        on_head = ["--address", f"http://{second.head_node.webui_url}"]
        submit = [*JOBS, "submit", *on_head, "--submission-id"]
        entry = command(tmp_path, results, "--address", "auto")
        driver = Driver(tmp_path, results, [*submit, "stopped", "--", *entry])
        driver.until((results / "store" / "steps" / stages[2] / "logs" / "0002" / "worker-0.log").exists)
        subprocess.run([*JOBS, "stop", *on_head, "stopped"], check=True)
        driver.end()
        assert "was stopped" in subprocess.check_output([*JOBS, "status", *on_head, "stopped"], text=True)
        deadline = time.monotonic() + 60
        while any("RayTrainWorker" in process.name() for process in psutil.Process().children(recursive=True)):
            assert time.monotonic() < deadline, "workers of the stopped job are still alive"
            time.sleep(0.1)
        assert Driver(tmp_path, results, [*submit, "again", "--", *entry]).end() == 0
    assert {step: when for step, when in finished(results).items() if step in before} == before
    survived, undisturbed = load(results), load(small_results)
    pd.testing.assert_frame_equal(survived.trials[NUMBERS], undisturbed.trials[NUMBERS])
    attempts = survived.steps.set_index("step_id")["attempts"]
    assert (attempts.drop(stages[2]) == 1).all(), "a lost controller or worker starts no new attempt"
    assert all(record(results, stage)["metrics"]["resumed"] for stage in stages)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_preemption_notice_causes_a_checkpoint(in_process_results: Path, tmp_path: Path) -> None:
    """The stage writes no other checkpoint, so it resumes on the new node from the one written for the notice.

    The command runs outside the cluster, as a client of Ray (`ray://`). Model and data are in the store already.
    """
    results = tmp_path / "results"
    copy_store(in_process_results, results / "store", "(?!model|data|canary).*")
    endless = small(resources__workers=2, resources__checkpoint_steps=10**6, training__sft__epochs=10**4)
    port = free_port()
    with cluster(ray_client_server_port=port) as nodes:
        more = ("--address", f"ray://127.0.0.1:{port}")
        driver = Driver(tmp_path, results, arguments(write_space(endless, tmp_path), results, *more))

        def printed(text: str) -> bool:
            logs = results.glob("store/steps/train-*/logs/*/worker-0.log")
            return any(text in log.read_text() for log in logs)

        driver.until(lambda: printed(""))
        (leaving,) = nodes.worker_nodes
        spot.drain(nodes.address, leaving.node_id, 600)
        driver.in_stage('"method": "sft"')
        nodes.remove_node(leaving, allow_graceful=False)
        nodes.add_node(**NODE)
        driver.until(lambda: printed("resuming from"))
        driver.process.send_signal(signal.SIGINT)
        driver.end()


def record(results: Path, step: str) -> Any:
    """The record of a step."""
    return json.loads((results / "store" / "steps" / step / "record.json").read_text())


def finished(results: Path) -> dict[str, float]:
    """Time at which each finished step's record was written."""
    return {path.parent.name: path.stat().st_mtime for path in results.glob("store/steps/*/record.json")}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 GB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    """Change the size of the file system."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def latest_tries(results: Path) -> dict[str, float]:
    """When each step that trains nothing was last tried or given up: a try changes the folder of the attempts."""
    folders = results.glob("store/steps/*/attempts")
    return {path.parent.name: path.stat().st_mtime for path in folders if not path.parent.name.startswith("train-")}


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(900)
def test_a_sweep_waits_while_its_disk_is_full(small_results: Path, disk: Path, tmp_path: Path) -> None:
    """The policies but the last are in the store, and the references; the disk has room for a part of other outputs."""
    results = disk / "results"
    last = "train dpo:helpfulness@2>dpo:harmlessness@2"
    copy_store(small_results, results / "store", f"(probabilities|generate|judge) .*|{last}")
    resize(disk, f"{psutil.disk_usage(str(disk)).used + 600 * 2**10}")
    address = ray.get_runtime_context().gcs_address
    driver = Driver(tmp_path, results, command(tmp_path, results, "--address", address))
    driver.until(lambda: psutil.disk_usage(str(disk)).free <= 2**16)
    full = latest_tries(results)
    # A step is tried again five seconds after its output could not be written.
    driver.until(lambda: any(when > full.get(step, when) + 4.0 for step, when in latest_tries(results).items()))
    before = finished(results)
    resize(disk, "1g")
    assert driver.end() == 0
    assert {step: when for step, when in finished(results).items() if step in before} == before
    survived, undisturbed = load(results), load(small_results)
    pd.testing.assert_frame_equal(survived.trials[NUMBERS], undisturbed.trials[NUMBERS])
