"""The package as it is installed: its data files, its declared dependencies and its console script."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from sacpo import cli
from tests.commands import call
from tests.spaces import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normalised(name: str) -> str:
    """The name of a distribution as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(folder: Path) -> set[str]:
    """Top-level names of the packages that the modules of a folder import, the standard library left out."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"sacpo", "tests"}


@pytest.mark.parametrize(("folder", "left_out"), [("sacpo", {"dev", "docs"}), ("tests", set())])
def test_every_import_is_declared(folder: str, left_out: set[str]) -> None:
    requirements = [*PROJECT["dependencies"]]
    for extra in PROJECT["optional-dependencies"].keys() - left_out:
        requirements += PROJECT["optional-dependencies"][extra]
    declared = {normalised(re.split(r"[\[<>=!~ ;]", requirement)[0]) for requirement in requirements}
    distributions = packages_distributions()
    missing = {
        name
        for name in imported(ROOT / folder)
        if not {normalised(distribution) for distribution in distributions.get(name, [name])} & declared
    }
    assert not missing


def test_the_quickstart_in_the_package_is_the_one_in_tune_spaces() -> None:
    assert (ROOT / "sacpo" / "quickstart.yaml").read_bytes() == (ROOT / "tune_spaces" / "quickstart.yaml").read_bytes()


def test_a_wheel_has_the_data_files_and_plans_the_quickstart_in_an_empty_folder(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sacpo", source / "sacpo", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [
        *pip,
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("sacpo-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "sacpo").rglob("*.py")}
    assert modules | {"sacpo/quickstart.yaml", "sacpo/reporting/templates/report.html.j2"} <= set(names)
    assert not [name for name in names if not name.startswith("sacpo")]
    assert PROJECT["scripts"] == {"sacpo": "sacpo.cli:main"}
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [
        sys.executable,
        "-c",
        "import sacpo, sacpo.cli as c; print(sacpo.__file__); c.main(['sweep', '--dry-run'])",
    ]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    answer = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith(str(tmp_path / "installed"))
    assert "space quickstart: 15 trials, 100 steps" in answer.stdout
    assert not list(empty.iterdir()), "a dry run touches nothing"


def test_the_console_script_lists_its_commands_and_refuses_others() -> None:
    answer = call(cli.main, "--help")
    assert answer.returncode == 0
    assert all(f"  {name} " in answer.stdout for name in ("sweep", "choose", "judge", "report", "export"))
    for argument in ("swep", ""):
        answer = call(cli.main, *([argument] if argument else []))
        assert answer.returncode == 2
        assert "usage: sacpo COMMAND" in answer.stderr
    assert "did you mean sweep?" in call(cli.main, "swep").stderr
    assert "usage: sacpo sweep" in call(cli.main, "sweep", "--help").stdout
