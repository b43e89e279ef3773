"""How the tests are shared out to two processes (`tests/conftest.py`, the Makefile)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.spaces import ROOT

TESTS = """
import os
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(20))
def test_of_a_group(number, tmp_path_factory):
    (tmp_path_factory.getbasetemp().parent / f"{number}-{os.environ['PYTEST_XDIST_WORKER']}").touch()
"""


def test_one_process_runs_all_tests_of_a_group(tmp_path: Path) -> None:
    """So that one Ray cluster starts: pytest-xdist loses the groups under a version of pytest that it does not know."""
    (tmp_path / "test_groups.py").write_text(TESTS)
    words = re.findall(r"^TESTS := .* -m pytest (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    command = [sys.executable, "-m", "pytest", *words, "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'made'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    subprocess.run([*command, "test_groups.py"], cwd=tmp_path, env=environment, check=True, timeout=120)
    made = [path.name.split("-") for path in (tmp_path / "made").glob("[0-9]*-gw*")]
    assert len(made) == 20
    assert len({process for _, process in made}) == 1
