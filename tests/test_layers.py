"""Pure rooms stay pure, and each library has one owner."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.spaces import ROOT

MODULES = sorted((ROOT / "sacpo").rglob("*.py"))
HEAVY = {"ray", "torch", "transformers", "trl", "deepspeed", "datasets"}
OWNERS = {
    "trl": {"steps/trainers.py"},
    "deepspeed": {"cluster/trainer.py"},
    "ray": {f"cluster/{name}.py" for name in ("trainer", "executor", "tuner", "dispatch", "preflight", "metrics")},
    "s3fs": {"storage.py"},
    "yaml": {"loading.py"},
    "matplotlib": {"pictures.py", "report.py"},
    "plotly": {"report.py"},
    "jinja2": {"report.py"},
    "openai": {"judges/endpoint.py"},
    "sklearn": {"frontier/agreement.py", "frontier/length.py"},
}
MAY_BE_HEAVY = ("steps/", "cluster/", "judges/", "data/rows.py")
ORDER = ("cluster", "steps", "judges", "data")  # a room imports only rooms to its right


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT / "sacpo"))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_import_only_what_they_may(path: Path) -> None:
    packages = {module.partition(".")[0] for module in imports(path)}
    for library, owners in OWNERS.items():
        assert library not in packages or name(path) in owners, f"{library} belongs to {owners}"
    top = {module.partition(".")[0] for module in imports(path, top_level_only=True)}
    if not name(path).startswith(MAY_BE_HEAVY):
        assert not top & HEAVY, "pure rooms answer within a second"
    room = name(path).partition("/")[0]
    if room in ORDER:
        left = {f"sacpo.{other}" for other in ORDER[: ORDER.index(room)]}
        assert not {m for m in imports(path) if m.startswith(tuple(left))}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_can_be_read_at_a_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_there_are_modules_to_check() -> None:
    assert len(MODULES) > 30
