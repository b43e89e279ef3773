"""Reads the fields of a row as people store them: values of another type are taken where they are unambiguous."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Row = dict[str, Any]
Messages = list[dict[str, str]]
PromptText = str | Messages
"""One user turn as a text, or several turns as chat messages with `role` and `content`."""

_TURN = re.compile(r"(?:^\s*|\r?\n\r?\n)(Human|Assistant):")
_TURN_LINE = re.compile(r"(?:^\s*|\r?\n)(Human|Assistant):")
"""A turn of a transcript without empty lines."""
_MESSAGES = re.compile(r"\s*\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")
"""How messages begin that were stored as text: as JSON, or as Python writes them (a list in a CSV of pandas)."""
_RENDERED = re.compile(
    r"(?:\b(?:ASSISTANT|Assistant):|### ?(?:Assistant|Response):|\[/INST\]|<start_of_turn>model"
    r"|<[|\uff5c](?:assistant|Assistant|start_header_id\|>assistant<\|end_header_id|im_start\|>assistant)(?:[|\uff5c]>)?)\s*$"
)
"""How a prompt ends that a template has rendered already."""
_ROLES = {
    **dict.fromkeys(("user", "Human", "human"), "user"),
    **dict.fromkeys(("assistant", "Assistant", "gpt"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
"""Names of the speakers in transcripts, in chat messages, and in those of ShareGPT (`from`, `value`)."""
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_NO_VALUE = {"", "nan", "none", "null", "na", "n/a"}


class InvalidRow(Exception):
    """A row cannot be used; the text is the reason under which it is counted."""


def field(row: Row, name: str) -> Any:
    """A field that is there. A missing value of pandas (NaN) is no value; numpy scalars become Python's.

    Raises:
        InvalidRow: it is missing.
    """
    value = row.get(name)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise InvalidRow(f"missing field {name}")
    return value


def _flag_or_id(row: Row, name: str) -> Any:
    """A field that holds a flag or an id. A text without a value, such as a CSV file has it, is missing.

    Raises:
        InvalidRow: it is missing.
    """
    value = field(row, name)
    if isinstance(value, str) and value.strip().casefold() in _NO_VALUE:
        raise InvalidRow(f"missing field {name}")
    return value


def boolean(row: Row, name: str) -> bool:
    """A flag: a boolean, 0 or 1 as a number, or one of these as a text.

    Raises:
        InvalidRow: it is missing, or none of these.
    """
    value = _flag_or_id(row, name)
    if isinstance(value, bool):
        return value
    key = str(value).strip().casefold()
    if not isinstance(value, int | float | str) or key not in _BOOLEANS:
        raise InvalidRow(f"wrong type {name}")
    return _BOOLEANS[key]


def response_id(row: Row, name: str) -> int:
    """The number of a response: 0 or 1, also as a float (a pandas column with a missing value) or a text.

    Raises:
        InvalidRow: it is missing, no number, or another number.
    """
    value = _flag_or_id(row, name)
    if isinstance(value, bool):
        raise InvalidRow("id out of range")
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise InvalidRow(f"wrong type {name}")
    if number not in (0.0, 1.0):
        raise InvalidRow("id out of range")
    return int(number)


def text(value: Any, name: str) -> str:
    """A text that can be written and tokenised.

    Raises:
        InvalidRow: it is no text, or has half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise InvalidRow(f"wrong type {name}")
    if not is_encodable(value):
        raise InvalidRow(f"lone surrogate in {name}")
    return value


def is_encodable(value: str) -> bool:
    """Whether a text is valid Unicode: JSON can hold one half of a surrogate pair, which no encoding can write."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def messages(value: Any, name: str) -> Messages:
    """Chat messages: a list of `role` and `content`, or such a list as JSON text or as Python writes it.

    A single message counts as a list of one. ShareGPT's `from` and `value` are read too, and contents in parts of text.

    Raises:
        InvalidRow: it is none, or has more than text: tool calls, images.
    """
    if isinstance(value, str) and _MESSAGES.match(value):
        value = _as_list(value, name)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise InvalidRow(f"wrong type {name}")
    return [_message(message, name) for message in value]


def _message(message: Any, name: str) -> dict[str, str]:
    """A message with our names of roles, whose content is a text.

    Raises:
        InvalidRow: it is no message, its role is unknown, or it has more than text.
    """
    if not isinstance(message, Mapping):
        raise InvalidRow(f"wrong type {name}")
    role, content = (message.get(key, message.get(other)) for key, other in (("role", "from"), ("content", "value")))
    if role is None:
        raise InvalidRow(f"wrong type {name}")
    if role in ("tool", "function", "ipython") or message.get("tool_calls") or message.get("function_call"):
        raise InvalidRow(f"tool calls in {name}")
    if role not in _ROLES:
        raise InvalidRow(f"unknown role {role!s:.20} in {name}")
    return {"role": _ROLES[role], "content": text(_joined_parts(content, name), name)}


def _joined_parts(content: Any, name: str) -> Any:
    """The text of a content in parts, such as `[{"type": "text", "text": "Hi"}]`; anything else as it is.

    Raises:
        InvalidRow: a part is no text, such as an image.
    """
    if not isinstance(content, list):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text":
            raise InvalidRow(f"{kind} in {name}" if isinstance(kind, str) else f"wrong type {name}")
    return "\n".join(text(part.get("text"), name) for part in content)


def is_messages(value: Any) -> bool:
    """Whether a field holds chat messages, as a list, as a single message or as text."""
    return isinstance(value, list | Mapping) or (isinstance(value, str) and _MESSAGES.match(value) is not None)


def _as_list(value: str, name: str) -> Any:
    """The value that a text holds as JSON or as Python writes it.

    Raises:
        InvalidRow: it holds none, such as the text of a numpy array, which has no commas.
    """
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    raise InvalidRow(f"messages that cannot be parsed in {name}")


def turns_of(value: str) -> Messages | None:
    """All turns of a transcript (`Human: ...`, `Assistant: ...`), also empty ones; None if the text is none.

    Turns begin after an empty line, as in hh-rlhf; in a text that has no such turn, on a line of their own.
    """
    head, *parts = _TURN.split(value)
    if len(parts) == 2:
        head, *parts = _TURN_LINE.split(value)
    if head.strip() or not parts:
        return None
    return [
        {"role": _ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def transcript(value: str) -> Messages | None:
    """The turns of a prompt that is a transcript; None if the text is none.

    An open `Assistant:` at the end is the place of the answer and no turn.
    """
    turns = turns_of(value)
    if turns is None or turns[0]["role"] != "user":
        return None
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def checked_turns(turns: Messages) -> PromptText:
    """The prompt of chat messages. Chat templates raise or write wrong text if turns do not alternate.

    Raises:
        InvalidRow: there is no turn, turns do not alternate, one is empty, or the last one ends in the words of a
            template (also the transcript on one line, `Human: Hi Assistant:`).
    """
    if not turns:
        raise InvalidRow("empty prompt")
    dialogue = turns[1:] if turns[0]["role"] == "system" else turns
    if [turn["role"] for turn in dialogue] != ["user", "assistant"] * (len(dialogue) // 2) + ["user"]:
        raise InvalidRow("turns do not alternate")
    if not dialogue[0]["content"].strip():
        raise InvalidRow("empty prompt")
    if not all(turn["content"].strip() for turn in dialogue):
        raise InvalidRow("empty turn")
    _check_not_rendered(turns[-1]["content"])
    return turns[0]["content"] if len(turns) == 1 else turns


def prompt(row: Row) -> PromptText:
    """The field `prompt`: a text, chat messages, or a transcript that ends where the answer begins.

    Raises:
        InvalidRow: it is missing, empty or malformed.
    """
    value = field(row, "prompt")
    if is_messages(value):
        return checked_turns(messages(value, "prompt"))
    value = text(value, "prompt")
    if not value.strip():
        raise InvalidRow("empty prompt")
    turns = transcript(value)
    if turns is not None:
        return checked_turns(turns)
    _check_not_rendered(value)
    return value


def _check_not_rendered(value: str) -> None:
    if ending := rendered_ending(value):
        raise InvalidRow(f"a template is in the prompt already: it ends with {ending}")


def rendered_ending(value: str) -> str:
    """The words of another template that open an answer at the end of a prompt, such as `ASSISTANT:`; empty if none.

    Such a prompt would be put into the model's own template, and its leakage into the evaluation would not be seen.
    """
    match = _RENDERED.search(value)
    return "" if match is None else match[0].strip()


def response(row: Row, name: str) -> str:
    """A response: a text, or one message of the assistant, also in a list.

    Raises:
        InvalidRow: it is missing, empty or malformed.
    """
    value = field(row, name)
    if is_messages(value):
        turns = messages(value, name)
        if [turn["role"] for turn in turns] != ["assistant"]:
            raise InvalidRow(f"wrong type {name}")
        value = turns[0]["content"]
    value = text(value, name).strip()
    if not value:
        raise InvalidRow("empty response")
    return str(value)
