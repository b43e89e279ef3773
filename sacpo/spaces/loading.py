"""Reads a space from YAML, strictly: every problem at once, each with its line and the nearest known key.

YAML 1.2's numbers are numbers here (`1e-5` is a float), a key given twice is a problem, and `--set` overrides enter
before validation, so that they pass the same checks.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sacpo.errors import SpaceError
from sacpo.spaces.space import Files, PretrainedModel, Space
from sacpo.spaces.validation import conflicts, dotted, judges

Path_ = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Safe YAML whose floats follow YAML 1.2: PyYAML reads `1e-5` as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)$|^[-+]?[0-9]*\.[0-9]+$|^[-+]?[0-9]+\.$"),
    list("-+0123456789."),
)


def load_space(path: Path, overrides: list[str] | None = None) -> Space:
    """Read and check a space file.

    Args:
        path: The YAML file. Paths inside it are relative to its folder.
        overrides: `key.subkey=value` texts (list items by index), applied before the checks.

    Returns:
        The space, with file paths made absolute.

    Raises:
        SpaceError: with every problem that was found.
    """
    lines: dict[Path_, str] = {}
    problems: list[str] = []
    data = _read(path, overrides or [], lines, problems)
    space = _validate(data, lines, problems)
    if problems or space is None:
        raise SpaceError(str(path), problems)
    return _resolve_paths(space, path.parent)


def load_settings(path: Path, overrides: list[str]) -> dict[str, Any]:
    """Read a part of a space, such as a judge's settings, from a YAML file; it is checked where it is put into a space.

    Raises:
        SpaceError: the file or an override cannot be read.
    """
    problems: list[str] = []
    data = _read(path, overrides, {}, problems)
    if problems:
        raise SpaceError(str(path), problems)
    resolved: dict[str, Any] = _resolved(data, path.parent)
    return resolved


def _read(path: Path, overrides: list[str], lines: dict[Path_, str], problems: list[str]) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = sorted(p.stem for p in Path("tune_spaces").glob("*.yaml"))
        raise SpaceError(str(path), [f"there is no such file; tune_spaces/ has {', '.join(known) or 'none'}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpaceError(str(path), [f"cannot be read as UTF-8 text: {error}"]) from None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = {} if node is None else _build(loader, node, (), lines, problems)
    except yaml.YAMLError as error:
        raise SpaceError(str(path), [f"is not YAML: {error}"]) from None
    if not isinstance(data, dict):
        raise SpaceError(str(path), ["must be a mapping of settings (name, model, data, ...)"])
    for override in overrides:
        _override(data, override, lines, problems)
    return data


def parse_space(data: dict[str, Any]) -> Space:
    """A space from its resolved JSON form (`sweep.json`), through the same checks."""
    problems: list[str] = []
    space = _validate(data, {}, problems)
    if space is None or problems:
        raise SpaceError("the stored space", problems)
    return space


def schema_text() -> str:
    """The JSON schema that editors check space files with (tune_spaces/schema.json)."""
    return json.dumps(Space.model_json_schema(), indent=1) + "\n"


# ------------------------------------------------------------------------------------------------------- YAML to data


def _build(loader: _Loader, node: yaml.Node, at: Path_, lines: dict[Path_, str], problems: list[str]) -> Any:
    lines[at] = f"line {node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            line = f"line {key_node.start_mark.line + 1}"
            if key in result:
                problems.append(f"{line}: {dotted((*at, key))}: is given twice (first: {lines[(*at, key)]})")
            result[key] = _build(loader, value_node, (*at, key), lines, problems)
            lines[(*at, key)] = line
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*at, i), lines, problems) for i, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def _override(data: dict[str, Any], override: str, lines: dict[Path_, str], problems: list[str]) -> None:
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        problems.append(f"--set {override}: must be key=value, for example --set data.max_length=256")
        return
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError:
        problems.append(f"--set {override}: the value is not YAML")
        return
    here: Any = data
    at: Path_ = ()
    for position, key in enumerate(keys):
        last = position == len(keys) - 1
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                problems.append(f"--set {override}: {dotted(at)} has items 0 to {len(here) - 1}, not {key!r}")
                return
            step: str | int = int(key)
        elif isinstance(here, dict):
            step = key
            if not last:
                here.setdefault(key, {})
        else:
            problems.append(f"--set {override}: {dotted(at)} is a single value; it has no setting {key!r}")
            return
        at = (*at, step)
        lines[at] = "--set"
        if last:
            here[step] = value
        else:
            here = here[step]


# ------------------------------------------------------------------------------------------------------- data to Space


def _validate(data: dict[str, Any], lines: dict[Path_, str], problems: list[str]) -> Space | None:
    try:
        space = Space.model_validate(data)
    except ValidationError as error:
        problems += [_problem(data, lines, detail) for detail in error.errors(include_url=False)]
        return None
    if not problems:
        problems += [_at(lines, where) + text for where, text in conflicts(space)]
    return space


def _problem(data: Any, lines: dict[Path_, str], detail: Any) -> str:
    """One pydantic error as one line: where, what was given, what is allowed, the way out."""
    where, model = _locate(data, detail["loc"])
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = sorted(model.model_fields) if model is not None else []
        near = difflib.get_close_matches(str(where[-1]), known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return f"{_at(lines, where)}{dotted(where)}: unknown setting; {hint}known here: {', '.join(known)}"
    if kind == "missing":
        return f"{_at(lines, where[:-1])}{dotted(where)}: is required"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    given = detail["input"]
    shown = "" if isinstance(given, dict | list) else f"got {given!r}; "
    return f"{_at(lines, where)}{dotted(where)}: {shown}{message}"


def _locate(data: Any, loc: Path_) -> tuple[Path_, type[BaseModel] | None]:
    """The path of an error in the file, without the union tags that pydantic adds, and the model it is in."""
    where: Path_ = ()
    owner: type[BaseModel] | None = None
    candidates: list[type[BaseModel]] = [Space]
    here = data
    for key in loc:
        tagged = [model for model in candidates if key in _tags(model)]
        if len(candidates) > 1 and tagged:
            candidates = tagged
            continue
        owner = candidates[0] if len(candidates) == 1 else None
        if owner is not None and str(key) in owner.model_fields:
            candidates = _models(owner.model_fields[str(key)].annotation)
        if isinstance(here, dict):
            here = here.get(key)
        elif isinstance(here, list) and isinstance(key, int) and key < len(here):
            here = here[key]
        else:
            continue  # a position inside a value that was given as a scalar
        where = (*where, key)
    return where, owner


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tags(model: type[BaseModel]) -> tuple[str, ...]:
    """The values of the field that tells a union's members apart (`kind` or `method`)."""
    for name in ("kind", "method"):
        field: FieldInfo | None = model.model_fields.get(name)
        if field is not None:
            return get_args(field.annotation)
    return ()


def _at(lines: dict[Path_, str], where: Path_) -> str:
    while where and where not in lines:
        where = where[:-1]
    line = lines.get(where)
    return f"{line}: " if line and where else ""


def _resolve_paths(space: Space, folder: Path) -> Space:
    """Makes paths that exist beside the space file absolute; what does not exist there is a hub id."""

    resolved = Space.model_validate(_resolved(space.model_dump(), folder))
    missing = [
        f"{dotted(where)}: {part.path!r} is not there, relative to {folder.resolve()}; mend the path"
        + (", or for a hub id give its `revision`" if hasattr(part, "revision") else "")
        for where, part in _path_parts(resolved)
        if not Path(part.path).exists() and getattr(part, "revision", None) is None
    ]
    if missing:
        raise SpaceError(str(folder), missing)
    return resolved


def _resolved(value: Any, folder: Path, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _resolved(v, folder, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolved(v, folder) for v in value]
    if key in ("path", "rubric") and isinstance(value, str):
        beside = (folder / value).resolve()
        return str(beside) if beside.exists() else value
    return value


def _path_parts(space: Space) -> list[tuple[Path_, Any]]:
    parts: list[tuple[Path_, Any]] = []
    if isinstance(space.model, PretrainedModel):
        parts.append((("model", "path"), space.model))
    if isinstance(space.data.demonstrations, Files):
        parts.append((("data", "demonstrations", "path"), space.data.demonstrations))
    parts += [(("data", "preferences", n, "path"), s) for n, s in space.data.preferences.items() if s.kind == "files"]
    named = [(("evaluation", name, "prompts"), c.prompts) for name, c in space.evaluation.criteria.items()]
    return parts + [((*where, "path"), part) for where, part in (*named, *judges(space)) if hasattr(part, "path")]
