"""What happens to a sweep whose cluster loses its only worker node in the middle of a stage, and gets another one."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sacpo import results as tables
from tests.commands import arguments, write_space
from tests.spaces import ROOT, small

NUMBERS = ["trial_id", "status", "helpfulness", "harmlessness", "expected_reward", "expected_safety", "kl_to_sft"]
NODE: dict[str, Any] = {"num_cpus": 2, "object_store_memory": 2**27}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head that trains nothing and one worker node; each node has its own raylet."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    found = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 2**27})
    found.add_node(**NODE)
    yield found
    found.shutdown()


@pytest.mark.timeout(1800)
def test_a_sweep_outlives_its_worker_node_and_uses_one_that_joins(
    cluster: Any, small_results: Path, tmp_path: Path
) -> None:
    space = write_space(small(resources__workers=2, resources__checkpoint_steps=3), tmp_path)
    results = tmp_path / "results"
    command = arguments(space, results, "--address", cluster.address)
    with (tmp_path / "output").open("wb") as output:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env=os.environ)
    while not list(results.glob("store/scratch/*/*/checkpoint_*")):
        assert driver.poll() is None, (tmp_path / "output").read_text()
        time.sleep(0.2)
    (worker,) = cluster.worker_nodes
    cluster.remove_node(worker, allow_graceful=False)
    time.sleep(5)
    assert driver.poll() is None
    cluster.add_node(**NODE)
    assert driver.wait(600) == 0, (tmp_path / "output").read_text()
    found, before = tables.load(results), tables.load(small_results)
    pd.testing.assert_frame_equal(found.trials[NUMBERS], before.trials[NUMBERS])
    assert found.sweep["counts"]["steps_run"] == len(found.steps)
    assert (found.steps["attempts"] == 1).all(), "the step that lost its workers went on, none was begun anew"
