"""The architecture as a test: layers without circles, owners of libraries, docstrings, short files."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commands import import_problem
from tests.spaces import ROOT

PACKAGE = ROOT / "sacpo"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Lowest first. A module imports only its own package and packages of lower lines; packages of one line are independent.
LAYERS = (
    ("__init__", "errors", "versions", "statistics", "synthetic"),
    ("command_line", "hashing", "spaces", "compat"),
    ("data",),
    ("judges",),
    ("planning", "search"),
    ("store",),
    ("execution",),
    ("steps", "results"),
    ("cluster", "reporting"),
    ("runs", "plots"),
    ("sweep", "extend", "choose", "judge", "report", "diff", "export", "doctor"),
    ("cli",),
)
LEVELS = {package: level for level, packages in enumerate(LAYERS) for package in packages}

# Packages whose docstring allows less than everything below them, and modules of which they may use a part only.
ALLOWED = {
    "command_line": {"errors"},
    "statistics": set(),
    "synthetic": set(),
    "compat": {"errors"},
    "spaces": {"errors"},
    "data": {"errors", "spaces", "synthetic"},
    "planning": {"errors", "hashing", "spaces", "data", "judges.rubric", "statistics", "synthetic"},
    "search": {"errors", "spaces", "statistics"},
    "results": {
        *("errors", "hashing", "versions", "statistics", "synthetic", "spaces", "planning", "store"),
        *("judges.verdicts", "judges.thoughts", "judges.judge_directed", "execution.artifacts"),
    },
}

PURE = (
    "spaces",
    "planning",
    "search",
    "store",
    "statistics",
    "results",
)  # neither ray nor torch, not even inside functions
HEAVY = {"ray", "torch", "transformers", "trl", "deepspeed", "datasets"}
MAY_BE_HEAVY = ("steps/", "cluster/", "compat/")  # they import heavy libraries outside functions

# Files, or folders with a slash at the end, that import a library.
OWNERS = {
    "trl": ("steps/trainers.py", "compat/trl.py"),
    "deepspeed": ("compat/deepspeed.py", "cluster/worker.py"),
    "ray": ("cluster/", "compat/"),
    "obstore": ("store/",),
    "yaml": ("spaces/",),
    "matplotlib": ("reporting/",),
    "jinja2": ("reporting/",),
    "rich": ("reporting/", "runs/"),
    "openai": ("judges/chat_client.py",),
    "sklearn": ("statistics/",),
    "scipy": ("statistics/", "judges/truncation.py"),
    "psutil": ("compat/",),
    "inspect_ai": ("runs/answer_formats.py",),
    "tokenizers": ("steps/",),
    "peft": ("steps/adapters.py",),
    "argcomplete": ("command_line.py",),
    "wandb": ("reporting/trackers/wandb_tracker.py",),
    "mlflow": ("reporting/trackers/mlflow_tracker.py",),
    "tensorboardX": ("reporting/trackers/tensorboard_tracker.py",),
    "trackio": ("reporting/trackers/trackio_tracker.py",),
    "optuna": ("search/optuna_search.py",),
    "mergekit": ("steps/merge.py",),
}
DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "sklearn": "scikit-learn",
    "inspect_ai": "inspect-ai",
    "mlflow": "mlflow-skinny",
    "tensorboardX": "tensorboardx",
}  # of libraries with another name than their distribution

SHIPPED = ("sacpo", "tune_spaces", "docs", "clusters", "analysis", ".ci")
SHIPPED_FILES = [
    *(path for path in sorted(ROOT.iterdir()) if path.suffix in (".md", ".yaml", ".toml", ".txt") and path.is_file()),
    ROOT / "Makefile",
    *(
        path
        for folder in SHIPPED
        for path in sorted((ROOT / folder).rglob("*"))
        if path.is_file() and path.suffix not in (".pyc", ".png") and "__pycache__" not in path.parts
    ),
]


class Import(NamedTuple):
    """One imported module, such as `sacpo.store.claim` or `torch.nn`."""

    module: str
    names: tuple[str, ...]
    is_nested: bool  # inside a function, so it is executed when the function is called
    for_types: bool  # below `if TYPE_CHECKING`, so it is never executed


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULE_NAMES = {module_name(path) for path in MODULES}


def imports_of(source: ast.Module, package: str) -> list[Import]:
    """All imports of a module, at any depth, as absolute module names.

    `from sacpo.store import claim` imports the module `sacpo.store.claim`; `from sacpo.store.claim import Claim`
    imports a name of that module.
    """

    def walk(node: ast.AST, is_nested: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, (), is_nested, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names = [alias.name for alias in node.names]
            modules = [f"{base}.{module}" for module in names if f"{base}.{module}" in MODULE_NAMES]
            yield from (Import(module, (), is_nested, for_types) for module in modules)
            others = tuple(other for other in names if f"{base}.{other}" not in MODULE_NAMES)
            if others:
                yield Import(base, others, is_nested, for_types)
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            is_guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, is_nested or is_function, for_types or is_guard)

    return list(walk(source, False, False))


@functools.cache
def imports(path: Path) -> tuple[Import, ...]:
    parent = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    return tuple(imports_of(tree(path), parent))


def package_of(module: str) -> str:
    """Top-level part of a module of sacpo: `store` for `sacpo.store.claim`, `__init__` for `sacpo` itself."""
    return [*module.split("."), "__init__"][1]


def is_own(module: str) -> bool:
    return module.split(".")[0] == "sacpo"


def is_owned(path: Path, owners: tuple[str, ...]) -> bool:
    return any(name(path).startswith(owner) if owner.endswith("/") else name(path) == owner for owner in owners)


def test_every_form_of_import_is_seen() -> None:
    source = """
import sacpo.errors
import sacpo.store.claim as c, torch.nn
from sacpo import errors
from sacpo import sweep as command, __version__
from sacpo.store import claim
from sacpo.store.claim import Claim
from . import backends
from .heartbeat import LEASE_S
from ..planning import plan
if TYPE_CHECKING:
    from sacpo.cluster import tuner
class C:
    def method(self):
        import sacpo.runs
        async def inner():
            from sacpo.cluster.tuner import run
"""
    seen = imports_of(ast.parse(source), "sacpo.store")
    assert [entry.module for entry in seen] == [
        *("sacpo.errors", "sacpo.store.claim", "torch.nn", "sacpo.errors", "sacpo.sweep", "sacpo", "sacpo.store.claim"),
        *("sacpo.store.claim", "sacpo.store.backends", "sacpo.store.heartbeat", "sacpo.planning.plan"),
        *("sacpo.cluster.tuner", "sacpo.runs", "sacpo.cluster.tuner"),
    ]
    assert [entry.is_nested for entry in seen] == [False] * 12 + [True] * 2
    assert [entry.for_types for entry in seen] == [False] * 11 + [True] + [False] * 2
    assert [package_of(module) for module in ("sacpo", "sacpo.cli", "sacpo.store.claim")] == [
        "__init__",
        "cli",
        "store",
    ]


def test_every_package_has_a_layer() -> None:
    assert len(MODULES) > 90
    packages = {package_of(module) for module in MODULE_NAMES}
    assert packages == set(LEVELS), "each package and each top-level module stands once in LAYERS"
    assert sum(len(packages) for packages in LAYERS) == len(LEVELS)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_down(path: Path) -> None:
    package = package_of(module_name(path))
    for entry in imports(path):
        if not is_own(entry.module):
            continue
        assert entry.module in MODULE_NAMES, f"{entry.module} does not exist"
        target = package_of(entry.module)
        assert target == package or LEVELS[target] < LEVELS[package], f"{package} may not import {entry.module}"
        if package in ALLOWED and target not in (package, "__init__"):
            allowed = {f"sacpo.{module}" for module in ALLOWED[package]}
            is_allowed = any(entry.module == module or entry.module.startswith(f"{module}.") for module in allowed)
            assert is_allowed, f"{package} may not import {entry.module}"


def test_modules_form_no_circle() -> None:
    """Within a package too, imports inside functions included; those for type checking alone are not executed."""
    graph = {
        module_name(path): {
            entry.module
            for entry in imports(path)
            if is_own(entry.module) and not entry.for_types and entry.module != module_name(path)
        }
        for path in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_libraries_are_imported_by_their_owners(path: Path) -> None:
    package = package_of(module_name(path))
    for entry in imports(path):
        library = entry.module.partition(".")[0]
        if library in OWNERS:
            assert is_owned(path, OWNERS[library]), f"{library} belongs to {OWNERS[library]}"
        if library in ("ray", "torch"):
            assert package not in PURE, f"{package} imports neither ray nor torch"
        if library in HEAVY and not entry.is_nested and not entry.for_types:
            assert name(path).startswith(MAY_BE_HEAVY), f"{library} takes seconds; import it inside a function"


def test_light_modules_load_no_heavy_library() -> None:
    """Indirectly neither: `--dry-run` and the other commands answer fast."""
    modules = [module_name(path) for path in MODULES if not name(path).startswith(MAY_BE_HEAVY)]
    assert import_problem(modules, HEAVY) == ""


def test_every_imported_library_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    declared = {re.split(r"[\[<>=~! ]", line)[0].lower() for line in [*project["dependencies"], *extras]}
    libraries = {entry.module.partition(".")[0] for path in MODULES for entry in imports(path)}
    libraries -= {*sys.stdlib_module_names, "sacpo"}
    assert {DISTRIBUTIONS.get(library, library) for library in libraries} <= declared


def private_names(source: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each use of a private name that the module does not define itself.

    A private name has one leading underscore. Imported modules and names, attributes, and names passed to `getattr`,
    `setattr`, `hasattr` and `delattr` count.
    """

    def is_private(text: str) -> bool:
        return text.startswith("_") and not text.startswith("__")

    defined = set()
    for node in ast.walk(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            defined.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
    for node in ast.walk(source):
        used: list[str] = []
        if isinstance(node, ast.Import):
            used = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            used = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute) and node.attr not in defined:
            used = [node.attr]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).rpartition(".")[2] in ("getattr", "setattr", "hasattr", "delattr")
            and len(node.args) > 1
            and isinstance(node.args[1], ast.Constant)
        ):
            used = [str(node.args[1].value)]
        yield from ((node.lineno, text) for text in used if is_private(text))  # type: ignore[attr-defined]


def test_every_use_of_a_private_name_is_seen() -> None:
    source = """
import ray._private.services
from ray.train._internal import session
from trl.trainer import _helper
class Own(Base):
    def _step(self):
        self._count = 0
        self._step(self._count)
        super()._loss()
        other._hidden = getattr(other, "_flag")
        self.__dict__, other.__class__
"""
    seen = [text for _, text in private_names(ast.parse(source))]
    assert sorted(seen) == sorted(["_private", "_internal", "_helper", "_loss", "_hidden", "_flag"])


@pytest.mark.parametrize("path", [path for path in MODULES if "compat" not in path.parts], ids=name)
def test_private_names_of_libraries_are_used_in_compat_only(path: Path) -> None:
    uses = [f"{name(path)}:{line}: {text}" for line, text in private_names(tree(path))]
    assert not uses, "private names of a library belong into sacpo/compat; those of another module become public"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_and_public_names_have_docstrings(path: Path) -> None:
    assert ast.get_docstring(tree(path)), "the module has no docstring"

    def without_docstring(node: ast.Module | ast.ClassDef) -> Iterator[str]:
        for child in node.body:
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if (is_function or isinstance(child, ast.ClassDef)) and not child.name.startswith("_"):
                is_overload = any("overload" in ast.unparse(decorator) for decorator in child.decorator_list)
                if not ast.get_docstring(child) and not is_overload:
                    yield f"{name(path)}:{child.lineno}: {child.name}"
                if isinstance(child, ast.ClassDef):
                    yield from without_docstring(child)

    assert not list(without_docstring(tree(path)))


@pytest.mark.parametrize("path", [path for path in MODULES if path.name == "__init__.py"], ids=name)
def test_packages_say_what_they_may_import(path: Path) -> None:
    text = ast.get_docstring(tree(path)) or ""
    assert path.parent == PACKAGE or re.search(r"\bimports?\b", text), "the docstring says what the package may import"


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_files_have_at_most_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def outside_paths(text: str, folder: Path) -> list[str]:
    """Relative paths in a text that lead out of the repository from the folder of its file."""
    paths = re.findall(r"(?<![\w./])(?:[\w.-]+/)*\.\./[\w./-]*", text)
    return [path for path in paths if not (folder / path).resolve().is_relative_to(ROOT)]


def test_a_path_outside_the_repository_is_seen() -> None:
    text = "path: ../../elsewhere/x.json, [README](../README.md), `a/../../b`, ..., ../"
    assert outside_paths(text, ROOT / "docs") == ["../../elsewhere/x.json"]
    assert outside_paths(text, ROOT) == ["../../elsewhere/x.json", "../README.md", "a/../../b", "../"]


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_shipped_file_refers_to_a_path_outside_the_repository(path: Path) -> None:
    assert path.resolve().is_relative_to(ROOT), "the file is a link to a place outside the repository"
    assert not outside_paths(path.read_text(), path.parent)
