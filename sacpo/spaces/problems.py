"""Problems of a space's settings as lines for its author: the setting, what was given, what is allowed, the way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sacpo.spaces.document import Document, Setting, dotted
from sacpo.spaces.other_tools import RANGE_HINT, is_range, other_name_hint

_NO_MAPPING = ("model_type", "model_attributes_type", "dict_type")


def problem_lines(annotation: Any, document: Document, error: ValidationError) -> Iterator[str]:
    """One line for each error of pydantic.

    Args:
        annotation: The model, or the union of models, that the document was checked against.
        document: The settings.
        error: What pydantic found.
    """
    listed = set[Setting]()  # mappings whose settings a line has listed already
    for detail in error.errors(include_url=False):
        setting, models = _locate(annotation, document.data, detail["loc"])
        is_missing = detail["type"] == "missing"
        line = document.line(setting[:-1] if is_missing else setting)
        if detail["type"] == "extra_forbidden":
            text = "unknown setting; " + _known(setting, models, setting[:-1] not in listed)
            listed.add(setting[:-1])
        else:
            text = "is required" if is_missing else _text(detail, setting, models, document)
        yield f"{line}{dotted(setting)}: {text.removesuffix('; ')}"


def _known(setting: Setting, models: list[type[BaseModel]], is_first: bool) -> str:
    """The setting that was meant, and the settings there are."""
    known = sorted(models[0].model_fields) if len(models) == 1 else []
    if hint := other_name_hint(setting):
        text = f"{hint}; "
    else:
        similar = difflib.get_close_matches(str(setting[-1]), known, n=1)
        text = f"did you mean {similar[0]}? " if similar else ""
    return text + (f"known settings: {', '.join(known)}" if is_first else "")


def _text(detail: Any, setting: Setting, models: list[type[BaseModel]], document: Document) -> str:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    shown = "" if isinstance(given, dict | list) else f"got {given!r}; "
    if given is None:
        return "has no value; give one, or leave the setting out for its default"
    if kind in _NO_MAPPING:
        return shown + _mapping(models)
    if kind == "union_tag_not_found":
        discriminator = context["discriminator"].strip("'")
        return f"{discriminator} is required: {_alternatives(models, discriminator)}"
    if kind == "union_tag_invalid":
        discriminator = context["discriminator"].strip("'")
        return f"{discriminator}: got {context['tag']!r}; should be {_listed(context['expected_tags'])}"
    if kind in ("float_type", "int_type", "list_type") and is_range(given):
        return RANGE_HINT
    if kind == "list_type":
        return f"{shown}should be a list; write [{given}]" if shown else "should be a list"
    if kind == "string_pattern_mismatch":
        slug = re.sub("[^a-z0-9_-]+", "-", str(given).lower()).strip("-_")
        allowed = "should have lower-case letters, digits, - and _ only"
        return f"{shown}{allowed}{f', such as {slug}' if slug else ''}" if setting[-1] == "name" else _plain(detail)
    hint = document.source_hint(document.value(setting[:-1])) if setting[-1:] == ("format",) else ""
    return f"{shown}{_plain(detail)}{hint}"


def _plain(detail: Any) -> str:
    """pydantic's own message."""
    message: str = detail["msg"]
    return message.removeprefix("Value error, ").replace("Input should", "should")


def _mapping(models: list[type[BaseModel]]) -> str:
    """What stands in the place of a value that is no mapping."""
    if len(models) == 1:
        return f"should be a mapping with the settings {', '.join(sorted(models[0].model_fields))}"
    for discriminator in ("kind", "method"):
        if alternatives := _alternatives(models, discriminator):
            return f"should be a mapping with {discriminator}: {alternatives}"
    return "should be a mapping"


def _alternatives(models: list[type[BaseModel]], discriminator: str) -> str:
    """The values of the setting that tells models apart."""
    fields = [model.model_fields[discriminator].annotation for model in models if discriminator in model.model_fields]
    return _listed(", ".join(repr(value) for field in fields for value in get_args(field)))


def _listed(values: str) -> str:
    """`a, b or c` of `'a', 'b', 'c'`."""
    first, comma, last = values.replace("'", "").rpartition(", ")
    return f"{first} or {last}" if comma else last


def _locate(annotation: Any, data: Any, location: Setting) -> tuple[Setting, list[type[BaseModel]]]:
    """The path of an error in the file, without the union tags that pydantic adds, and the models that it is about.

    These are the models of the mapping that has an unknown or missing setting, or those that the value may be.
    """
    setting: Setting = ()
    candidates = _models(annotation)
    value = data
    for key in location:
        tagged = [model for model in candidates if key in _tags(model)]
        if len(candidates) > 1 and tagged:
            candidates = tagged
            continue
        owner = candidates[0] if len(candidates) == 1 else None
        if owner is not None and str(key) in owner.model_fields:
            candidates = _models(owner.model_fields[str(key)].annotation)
        if isinstance(value, dict) and not isinstance(key, int):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            continue  # a list position that pydantic sees because the model turns a single value into a list
        setting = (*setting, key)
    return setting, candidates


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _tags(model: type[BaseModel]) -> set[Any]:
    """Values that tell the members of a union apart: those of fields that allow a single value."""
    literals = [field.annotation for field in model.model_fields.values() if get_origin(field.annotation) is Literal]
    return {get_args(literal)[0] for literal in literals if len(get_args(literal)) == 1}
