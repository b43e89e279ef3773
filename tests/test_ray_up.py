"""`ray up` on machines of one's own: simulated hosts with SSH, and a sweep on the cluster that comes up."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from sacpo.compat.deepspeed import operator_folder
from sacpo.results import load
from tests import hosts
from tests.commands import write_space
from tests.results_folders import LAST_STAGE, copy_store
from tests.spaces import ROOT, small
from tests.test_faults import NUMBERS

pytestmark = pytest.mark.slow

_SPACE = "/mnt/shared/small.yaml"


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[hosts.Hosts]:
    """A head and two workers."""
    reason = hosts.missing()
    if reason is not None:
        pytest.skip(reason)
    with hosts.running(3, tmp_path) as machines:
        yield machines


def cluster_file(machines: hosts.Hosts, folder: Path) -> Path:
    """clusters/owned.yaml with its CHANGE lines changed; the environment is this one instead of a new one.

    All machines use its build of DeepSpeed's operator, which each would compile for a minute and more.
    """
    config: dict[str, Any] = yaml.safe_load((ROOT / "clusters" / "owned.yaml").read_text())
    head, *workers = machines.addresses
    config["cluster_name"] = f"sacpo-test-{os.getpid()}"
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(machines.key)}
    installing = [command for command in config["setup_commands"] if "uv" in command]
    assert len(installing) == 3
    others = [command for command in config["setup_commands"] if command not in installing]
    scripts = Path(sys.executable).parent
    python = f"printf '#!/bin/sh\\nexec {sys.executable} \"$@\"\\n' > ~/venv/bin/python; chmod +x ~/venv/bin/python"
    operators = f"echo 'export TORCH_EXTENSIONS_DIR={operator_folder().parent}' >> ~/.bashrc"
    links = f"mkdir -p ~/venv/bin; ln -sfn {scripts}/ray ~/venv/bin/ray"
    config["setup_commands"] = [links, python, operators, *others]
    config["worker_start_ray_commands"][-1] += " --num-cpus=1"  # so that no two workers share a machine
    path = folder / "owned.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_a_sweep_runs_on_own_machines_that_ray_up_has_started(
    machines: hosts.Hosts, small_results: Path, tmp_path: Path
) -> None:
    """The two worker slots are on machines of their own, so ZeRO-3 communicates over the network.

    All but the last stage and the evaluation of its policy is in the store already.
    """
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
    environment = os.environ | {"HOME": str(home), "RAY_TMPDIR": str(tmp_path), "PATH": hosts.PATH}
    config = cluster_file(machines, tmp_path)

    def ray(*words: str) -> str:
        command = [str(Path(sys.executable).with_name("ray")), *words]
        answer = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout

    write_space(small(resources__workers=2), machines.shared)
    missing = copy_store(small_results, machines.shared / "results" / "store", LAST_STAGE)
    ray("up", str(config), "--yes", "--no-config-cache")
    try:
        all_nodes = 'python -c "import ray, time; ray.init()\nwhile len(ray.nodes()) < 3: time.sleep(1)"'
        ray("exec", str(config), all_nodes)
        sweep = f"cd ~/sacpo && python -m sacpo.sweep {_SPACE} --results /mnt/shared/results --address auto"
        print(ray("exec", str(config), sweep))
    finally:
        ray("down", str(config), "--yes")
    results, expected = load(machines.shared / "results"), load(small_results)
    assert set(results.steps.query("not reused")["step_id"]) == missing
    pd.testing.assert_frame_equal(results.trials[NUMBERS], expected.trials[NUMBERS])
