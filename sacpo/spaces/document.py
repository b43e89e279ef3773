"""Reads YAML mappings, remembers the line of every setting, and applies `--set` overrides.

Numbers follow YAML 1.2: `1e-5` is a float. A duplicate key is a problem.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sacpo.errors import SpaceError

Setting = tuple[str | int, ...]
"""Path of a setting: keys and list positions."""
Report = Callable[[Setting, str], None]
"""Takes the path of a setting, and the problem with the way out."""


def dotted(setting: Setting) -> str:
    """The path of a setting as a user writes it: `chains.0.beta`."""
    return ".".join(str(key) for key in setting) or "the space"


@dataclass
class Document:
    """A mapping of settings.

    Attributes:
        source: The file, or another origin, for error messages.
        data: The settings as YAML gives them.
        lines: `line 3` or `--set` by setting; empty if the data come from no file.
        problems: One line for each problem.
        only_shown: The plan is only shown, so that files which it does not need may be missing.
        source_hint: The end of an error about a source's `format`, from the source's settings.
    """

    source: str
    data: dict[str, Any]
    lines: dict[Setting, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    only_shown: bool = False
    source_hint: Callable[[dict[str, Any]], str] = lambda _: ""

    def line(self, setting: Setting) -> str:
        """`line 3: ` of a setting, or of the closest setting around it; empty if neither has a line."""
        while setting and setting not in self.lines:
            setting = setting[:-1]
        return f"{self.lines[setting]}: " if setting else ""

    def raise_problems(self) -> None:
        """Raise the problems if there are any.

        Raises:
            SpaceError: lists every problem.
        """
        if self.problems:
            raise SpaceError(self.source, self.problems)

    def value(self, setting: Setting) -> Any:
        """The value of a setting; None if it is not there."""
        value: Any = self.data
        for key in setting:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def override(self, text: str) -> None:
        """Apply a `--set` text `key.subkey=value`. Missing mappings are created; list items must exist."""
        name, equals, value_text = text.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            self.problems.append(f"--set {text}: must be key=value, for example --set data.max_length=256")
            return
        try:
            value = yaml.load(value_text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
        except yaml.YAMLError:
            self.problems.append(f"--set {text}: the value is not YAML; quote it")
            return
        parent: Any = self.data
        setting: Setting = ()
        for position, key in enumerate(keys):
            last = position == len(keys) - 1
            if isinstance(parent, list):
                if not key.isdigit() or int(key) >= len(parent):
                    self.problems.append(
                        f"--set {text}: {dotted(setting)} has items 0 to {len(parent) - 1}, not {key!r}; "
                        f"write for example {dotted((*setting, 0, *keys[position + key.isdigit() :]))}={value_text}"
                    )
                    return
                step: str | int = int(key)
            elif isinstance(parent, dict):
                step = key
                if not last:
                    parent.setdefault(key, {})
            else:
                self.problems.append(f"--set {text}: {dotted(setting)} is a single value; it has no setting {key!r}")
                return
            setting = (*setting, step)
            self.lines[setting] = "--set"
            if last:
                parent[step] = value
            else:
                parent = parent[step]


def read_document(path: Path, overrides: list[str]) -> Document:
    """Read a YAML mapping and apply overrides.

    Args:
        path: The file.
        overrides: `key.subkey=value` texts (list items by index).

    Returns:
        The document. Duplicate keys and wrong overrides are in its `problems`.

    Raises:
        SpaceError: the file is missing, is not YAML in UTF-8, or is not a mapping.
    """
    document = Document(str(path), {})
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        data = {} if node is None else _build(loader, node, (), document)
    except FileNotFoundError:
        raise SpaceError(document.source, [f"there is no such file; {_way_out(path)}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(document.source, [f"cannot be read as UTF-8 text: {error}"]) from None
    except yaml.YAMLError as error:
        raise SpaceError(document.source, [f"is not YAML: {error}"]) from None
    if not isinstance(data, dict):
        raise SpaceError(
            document.source, [f"is a {type(data).__name__}; it must be a mapping of settings (key: value)"]
        )
    document.data = data
    for text in overrides:
        document.override(text)
    return document


def _way_out(missing: Path) -> str:
    """What to give instead of a file that is not there."""
    if "=" in missing.name:
        return f"a setting is given by --set {missing}"
    near = sorted({path for suffix in ("yaml", "yml") for path in missing.parent.glob(f"*.{suffix}")})
    known = near or sorted(Path("tune_spaces").glob("*.yaml"))
    return f"known files: {', '.join(map(str, known))}" if known else "correct the path"


class _Loader(yaml.SafeLoader):
    """Safe YAML whose floats follow YAML 1.2: PyYAML reads `1e-5` as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)$|^[-+]?[0-9]*\.[0-9]+$|^[-+]?[0-9]+\.$"),
    list("-+0123456789."),
)


_MERGE = "tag:yaml.org,2002:merge"


def _merged(loader: _Loader, node: yaml.MappingNode, setting: Setting, document: Document) -> dict[str, Any]:
    """The settings that a mapping takes from others with `<<: *name` or `<<: [*name, *other]`, the first one first."""
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if key_node.tag == _MERGE:
            parts = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            for part in parts:
                if isinstance(part, yaml.MappingNode):
                    merged = _build(loader, part, setting, document) | merged
                else:
                    document.problems.append(
                        f"line {part.start_mark.line + 1}: {dotted(setting)}: << takes mappings; give an anchor of one"
                    )
    return merged


def _build(loader: _Loader, node: yaml.Node, setting: Setting, document: Document) -> Any:
    """The data of a YAML node; notes lines and duplicate keys in the document."""
    if isinstance(node, yaml.MappingNode):
        merged = _merged(loader, node, setting, document)
        document.lines[setting] = f"line {node.start_mark.line + 1}"
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                continue
            key = str(loader.construct_object(key_node, deep=True))
            entry = (*setting, key)
            line = f"line {key_node.start_mark.line + 1}"
            if key in result:
                first = document.lines[entry]
                document.problems.append(f"{line}: {dotted(entry)}: is given twice (first: {first}); remove one")
            result[key] = _build(loader, value_node, entry, document)
            document.lines[entry] = line
        return merged | result
    document.lines[setting] = f"line {node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*setting, i), document) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)
