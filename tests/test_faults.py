"""What becomes of a sweep whose controller, worker node, head or disk goes away in the middle of a stage."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
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

from sacpo.cluster import spot
from sacpo.results import tables
from tests.commands import arguments, free_port, write_space
from tests.killing import known
from tests.spaces import ROOT, small

T = TypeVar("T")
NUMBERS = ["trial_id", "status", "helpfulness", "harmlessness", "expected_reward", "expected_safety", "kl_to_sft"]
JOBS = [str(Path(sys.executable).with_name("ray")), "job"]
_SMALL = {"object_store_memory": 2**27, "dashboard_agent_listen_port": 0}  # beside other clusters
NODE: dict[str, Any] = {"num_cpus": 2, **_SMALL}


@contextlib.contextmanager
def cluster(**more: Any) -> Iterator[Any]:
    """A head that trains nothing and one worker node; each node has its own raylet."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    found = Cluster(initialize_head=True, head_node_args=head | _SMALL | more)
    found.add_node(**NODE)
    try:
        yield found
    finally:
        found.shutdown()


def command(folder: Path, results: Path, *more: str) -> list[str]:
    """That of a small sweep with a checkpoint after every update, which leaves time to kill before a stage's end."""
    space = write_space(small(resources__workers=2, resources__checkpoint_steps=1), folder)
    return arguments(space, results, *more)


class Driver:
    """A command that runs."""

    def __init__(self, folder: Path, results: Path, command: list[str]) -> None:
        self.results, self.output = results, folder / "output"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=os.environ)

    def in_stage(self, label: str, after: str | None = None) -> tuple[str, str]:
        """Wait until the stage whose payload holds this has a checkpoint that its controller knows.

        Args:
            label: Part of its payload.
            after: What was known before, where another checkpoint is waited for.

        Returns:
            Its step's id, and what its controller knows.
        """

        def there() -> tuple[str, str] | None:
            for folder in self.results.glob("store/scratch/*"):
                payload = self.results / "store" / "steps" / folder.name / "payload.json"
                found = known(folder)
                if found and found != after and label in payload.read_text():
                    return folder.name, found
            return None

        return self.until(there)

    def until(self, found: Callable[[], T]) -> T:
        """What is found once there is something, while the command runs.

        Raises:
            AssertionError: it ended, or nothing is found in ten minutes; what it and its training workers printed.
        """
        by = time.monotonic() + 600
        while not (value := found()):
            if self.process.poll() is not None or time.monotonic() > by:
                logs = [self.output, *self.results.glob("store/steps/train-*/logs/*/*.log")]
                raise AssertionError("\n".join(f"{log}\n{log.read_text()[-3000:]}" for log in logs))
            time.sleep(0.1)
        return value

    def end(self) -> int:
        status = self.process.wait(600)
        print(self.output.read_text())
        return status


@pytest.mark.timeout(1800)
def test_a_sweep_outlives_its_controller_its_worker_node_and_its_head(small_results: Path, tmp_path: Path) -> None:
    """The controller is killed in the SFT stage, whose node is then taken back after a notice; the only worker node is
    killed in the first DPO stage, the head in the second.

    A node that joins gets the work; when the head is gone, the same command goes on on another cluster, as a job that
    is stopped and submitted once more.
    """
    results = tmp_path / "results"
    with cluster() as first:
        driver = Driver(tmp_path, results, command(tmp_path, results, "--address", first.address))
        stage, before_it = driver.in_stage('"method": "sft"')
        stages = [stage]
        (controller,) = (p for p in psutil.Process().children(recursive=True) if "TrainController" in p.name())
        controller.kill()
        assert driver.in_stage('"method": "sft"', after=before_it)[0] == stage
        (worker,) = first.worker_nodes
        joined = first.add_node(**NODE)
        spot.drain(first.address, worker.node_id, 30)
        time.sleep(1)
        first.remove_node(worker, allow_graceful=False)
        stages.append(driver.in_stage('"objective": "helpfulness"')[0])
        first.remove_node(joined, allow_graceful=False)
        time.sleep(5)
        assert driver.process.poll() is None
        first.add_node(**NODE)
        stages.append(driver.in_stage('"objective": "harmlessness"')[0])
        before = finished(results)
        assert len(before) > 10
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
        gone_by = time.monotonic() + 60
        while any("RayTrainWorker" in process.name() for process in psutil.Process().children(recursive=True)):
            assert time.monotonic() < gone_by, "the stopped job's workers are still there"
            time.sleep(0.5)
        assert Driver(tmp_path, results, [*submit, "again", "--", *entry]).end() == 0
    assert {step: when for step, when in finished(results).items() if step in before} == before
    found, calm = tables.load(results), tables.load(small_results)
    pd.testing.assert_frame_equal(found.trials[NUMBERS], calm.trials[NUMBERS])
    attempts = found.steps.set_index("step_id")["attempts"]
    assert (attempts.drop(stages[2]) == 1).all(), "what lost its controller or its workers was not begun anew"
    assert all(record(results, stage)["metrics"]["resumed"] for stage in stages)


@pytest.mark.timeout(1800)
def test_a_notice_is_answered_with_a_checkpoint(tmp_path: Path) -> None:
    """No checkpoint is due in the whole stage: the one that it goes on from elsewhere is written for the notice.

    The command is no part of the cluster: it drives it as Ray's client.
    """
    results = tmp_path / "results"
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
        driver.until(lambda: printed("goes on from"))
        driver.process.send_signal(signal.SIGINT)
        driver.end()


def record(results: Path, step: str) -> Any:
    return json.loads((results / "store" / "steps" / step / "record.json").read_text())


def finished(results: Path) -> dict[str, float]:
    """When each finished step was."""
    return {path.parent.name: path.stat().st_mtime for path in results.glob("store/steps/*/record.json")}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.timeout(900)
def test_a_sweep_waits_while_its_disk_is_full(small_results: Path, disk: Path, tmp_path: Path) -> None:
    """The SFT policy and the data are there; there is room for a part of the rest."""
    results = disk / "results"
    steps = tables.load(small_results).steps
    stages = steps.loc[(steps["kind"] == "train") & (steps["label"] != "sft"), "step_id"]
    kept = shutil.ignore_patterns("reference-*", "probabilities-*", "generate-*", "judge-*", *stages)
    shutil.copytree(small_results / "store", results / "store", ignore=kept)
    resize(disk, f"{psutil.disk_usage(str(disk)).used + 600 * 2**10}")
    driver = Driver(tmp_path, results, command(tmp_path, results))
    driver.until(lambda: psutil.disk_usage(str(disk)).free <= 2**16)
    time.sleep(10)
    assert driver.process.poll() is None, driver.output.read_text()
    before = finished(results)
    resize(disk, "1g")
    assert driver.end() == 0
    assert {step: when for step, when in finished(results).items() if step in before} == before
    found, calm = tables.load(results), tables.load(small_results)
    pd.testing.assert_frame_equal(found.trials[NUMBERS], calm.trials[NUMBERS])
