"""Reads a space or a judge from a YAML file and checks it.

All problems are reported at once, each with its line and the most similar known key. `--set` overrides are applied
before the checks, so they pass the same checks.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sacpo.spaces.base import InputPath, Strict, as_list
from sacpo.spaces.document import Document, Setting, dotted, read_document
from sacpo.spaces.evaluation import JudgeSettings
from sacpo.spaces.model_folder import folder_problem
from sacpo.spaces.problems import problem_lines
from sacpo.spaces.space import Space
from sacpo.spaces.validation import conflicts

_Settings = TypeVar("_Settings", bound=Strict)


def load_space(
    path: Path,
    overrides: list[str] | None = None,
    only_shown: bool = False,
    source_hint: Callable[[dict[str, Any], Path], str] = lambda *_: "",
) -> Space:
    """Read and check a space file.

    Args:
        path: The YAML file. Paths in it are relative to its folder.
        overrides: `key.subkey=value` texts (list items by index), applied before the checks.
        only_shown: The plan is only shown (`--dry-run`), so that files of prompts may be missing.
        source_hint: The end of an error about a source's `format`, from the source's settings and the file's folder.

    Returns:
        The space, with absolute paths of local inputs.

    Raises:
        SpaceError: lists every problem.
    """
    document = read_document(path, overrides or [])
    document.only_shown = only_shown
    document.source_hint = lambda source: source_hint(source, path.parent)
    space: Space = _validate(Space, document)
    document.problems += [document.line(setting) + text for setting, text in conflicts(space)]
    return _with_absolute_paths(space, path.parent, document)


def load_judge(path: Path, overrides: list[str] | None = None) -> JudgeSettings:
    """Read and check a judge's settings from a file of their own, as they are under `evaluation.CRITERION.judge`.

    Args:
        path: The YAML file. Paths in it are relative to its folder.
        overrides: `key.subkey=value` texts, applied before the checks.

    Returns:
        The settings, with absolute paths of local inputs. Whether the judge fits a space is not checked here; see
        `sacpo.spaces.validation.conflicts`.

    Raises:
        SpaceError: lists every problem.
    """
    document = read_document(path, overrides or [])
    judge: JudgeSettings = _validate(JudgeSettings, document)
    return _with_absolute_paths(judge, path.parent, document)


def parse_space(data: dict[str, Any], overrides: Iterable[str] = ()) -> Space:
    """Read a space from its JSON form with absolute paths, as a sweep stores it; the same checks apply.

    Args:
        data: The settings; overrides change them in place.
        overrides: As for `load_space`.

    Raises:
        SpaceError: lists every problem.
    """
    document = Document("the stored space", data)
    for text in overrides:
        document.override(text)
    space: Space = _validate(Space, document)
    document.problems += [text for _, text in conflicts(space)]
    document.raise_problems()
    return space


def schema_text() -> str:
    """The JSON schema that editors check space files with (tune_spaces/schema.json)."""
    return json.dumps(Space.model_json_schema(), indent=1) + "\n"


# ----------------------------------------------------------------------------------------------------- data to models


def _validate(annotation: Any, document: Document) -> Any:
    """An instance of a model or of a union of models.

    Raises:
        SpaceError: lists every problem.
    """
    try:
        settings = TypeAdapter(annotation).validate_python(document.data)
    except ValidationError as error:
        document.problems += problem_lines(annotation, document, error)
        settings = None
    document.raise_problems()
    return settings


# ------------------------------------------------------------------------------------------------------- input paths


def _with_absolute_paths(settings: _Settings, folder: Path, document: Document) -> _Settings:
    """A copy in which paths that exist relative to a folder are absolute.

    Raises:
        SpaceError: lists every input that is neither a local path nor a hub id with a revision.
    """
    resolved: _Settings = _resolved(settings, folder, (), document)
    document.raise_problems()
    return resolved


def _matching(paths: str | list[str], folder: Path) -> str | list[str] | None:
    """Absolute paths and globs of local files; None for a single path without a glob, and if one matches no file."""
    if isinstance(paths, str) and not glob.has_magic(paths):
        return None
    absolute = [str((folder / path).absolute()) for path in as_list(paths)]
    if not all(glob.glob(path, recursive=True) for path in absolute):
        return None
    return absolute[0] if isinstance(paths, str) else absolute


def _resolved(value: Any, folder: Path, setting: Setting, document: Document) -> Any:
    if isinstance(value, Strict):
        update: dict[str, Any] = {}
        for name, field in type(value).model_fields.items():
            part, inner = getattr(value, name), (*setting, name)
            marker = next((m for m in field.metadata if isinstance(m, InputPath)), None)
            if marker is None or part is None:
                update[name] = _resolved(part, folder, inner, document)
                continue
            if marker.several and (paths := _matching(part, folder)) is not None:
                update[name] = paths
                continue
            local = folder if isinstance(part, list) else (folder / part).resolve()
            may_be_missing = document.only_shown and not marker.needed_to_plan
            if (local.exists() or may_be_missing) and not isinstance(part, list):
                update[name] = str(local)
                if marker.model and (problem := folder_problem(local, getattr(value, "gguf_file", None))):
                    document.problems.append(f"{document.line(inner)}{dotted(inner)}: {problem}")
            elif not marker.hub or getattr(value, "revision", None) is None:
                document.problems.append(
                    f"{document.line(inner)}{dotted(inner)}: there is no {part!r} in {folder.resolve()}; "
                    "correct the path" + (", or for a hub id give its `revision`" if marker.hub else "")
                )
        return value.model_copy(update=update)
    if isinstance(value, dict):
        return {key: _resolved(part, folder, (*setting, key), document) for key, part in value.items()}
    if isinstance(value, list):
        in_file = isinstance(document.value(setting), list)  # else the only item stands in the place of the list
        return [
            _resolved(part, folder, (*setting, i) if in_file else setting, document) for i, part in enumerate(value)
        ]
    return value
