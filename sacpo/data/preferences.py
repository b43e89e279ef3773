"""Turns preference rows of each format into training examples, and keeps sets of prompts apart.

The `prompt` of an example is a text, or a list of chat messages if it has several turns; its responses are texts.
Invalid rows are left out and counted by reason, so that the caller can refuse a file with too many of them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from sacpo.errors import DataError
from sacpo.spaces.methods import ExampleShape
from sacpo.spaces.space import RowFormat

PromptText = str | list[dict[str, str]]
"""One user turn as a text, or several turns as chat messages with `role` and `content`."""

Row = dict[str, Any]
Example = dict[str, Any]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class _InvalidRow(Exception):
    """A row cannot be used; the text is the reason under which it is counted."""


# --------------------------------------------------------------------------------------------------------- the formats


def convert(
    rows: Iterable[Row], *, format: RowFormat, objective: str | None, shape: ExampleShape
) -> tuple[list[Example], Counter[str]]:
    """Turn rows of a known format into training examples.

    Args:
        rows: Rows as `sacpo.data.rows.read_rows` returns them.
        format: Format of the rows.
        objective: Objective of the preferences, which picks the columns of pku-saferlhf; other formats hold one
            objective.
        shape: `pairs` gives prompt, chosen, rejected; `labelled` gives prompt, completion, label; `demonstrations`
            gives prompt, completion.

    Returns:
        The examples in the order of the rows, and the number of invalid rows by reason.

    Raises:
        DataError: the format cannot give the shape, or it needs an objective and there is none.
    """
    reader = FORMATS[format]
    if reader.needs_objective and objective is None:
        raise DataError(
            f"format {format} has columns for several objectives; name an objective, such as helpfulness, or use "
            "another format (pairs, hh-rlhf, labelled, demonstrations)"
        )
    if shape not in reader.shapes:
        alternatives = [name for name, other in FORMATS.items() if shape in other.shapes]
        raise DataError(
            f"format {format} cannot give {shape}, only {', '.join(reader.shapes)}; use a format that gives {shape} "
            f"({', '.join(alternatives)})"
            + (", or train the stage with kto, which takes labelled rows" if "labelled" in reader.shapes else "")
        )
    examples: list[Example] = []
    invalid: Counter[str] = Counter()
    for row in rows:
        try:
            examples += reader.read(row, objective, shape)
        except _InvalidRow as reason:
            invalid[str(reason)] += 1
    return examples, invalid


@dataclass(frozen=True)
class RowReader:
    """How rows of one format become examples.

    Attributes:
        shapes: Shapes that the format can give.
        read: The examples of a row, given the objective and the shape; raises for an invalid row.
        needs_objective: The rows have columns for several objectives.
    """

    shapes: tuple[ExampleShape, ...]
    read: Callable[[Row, str | None, ExampleShape], list[Example]]
    needs_objective: bool = False


def _read_pku(row: Row, objective: str | None, shape: ExampleShape) -> list[Example]:
    prompt = _prompt(row)
    responses = [_response(row, f"response_{i}") for i in (0, 1)]
    if shape == "labelled" and objective == "harmlessness":
        labels = [_boolean(row, f"is_response_{i}_safe") for i in (0, 1)]
        _check_different(*responses)
        return [
            {"prompt": prompt, "completion": response, "label": label}
            for response, label in zip(responses, labels, strict=True)
        ]
    columns = {"helpfulness": "better_response_id", "harmlessness": "safer_response_id"}
    preferred = _response_id(row, columns.get(str(objective), f"{objective}_response_id"))
    return _examples_of_pair(prompt, responses[preferred], responses[1 - preferred], shape)


def _read_hh(row: Row, objective: str | None, shape: ExampleShape) -> list[Example]:
    (prompt, chosen), (other_prompt, rejected) = _transcript(row, "chosen"), _transcript(row, "rejected")
    if prompt != other_prompt:
        raise _InvalidRow("transcripts diverge before the last answer")
    if not chosen or not rejected:
        raise _InvalidRow("empty response")
    return _examples_of_pair(_checked_turns(prompt), chosen, rejected, shape)


def _read_pair(row: Row, objective: str | None, shape: ExampleShape) -> list[Example]:
    return _examples_of_pair(_prompt(row), _response(row, "chosen"), _response(row, "rejected"), shape)


def _read_labelled(row: Row, objective: str | None, shape: ExampleShape) -> list[Example]:
    label = _boolean(row, "label")
    example = {"prompt": _prompt(row), "completion": _response(row, "completion")}
    if shape == "labelled":
        return [{**example, "label": label}]
    return [example] if label else []


def _read_demonstration(row: Row, objective: str | None, shape: ExampleShape) -> list[Example]:
    return [{"prompt": _prompt(row), "completion": _response(row, "completion")}]


FORMATS: dict[RowFormat, RowReader] = {
    "pku-saferlhf": RowReader(("pairs", "labelled", "demonstrations"), _read_pku, needs_objective=True),
    "hh-rlhf": RowReader(("pairs", "labelled", "demonstrations"), _read_hh),
    "pairs": RowReader(("pairs", "labelled", "demonstrations"), _read_pair),
    "labelled": RowReader(("labelled", "demonstrations"), _read_labelled),
    "demonstrations": RowReader(("demonstrations",), _read_demonstration),
}
"""The reader of each format."""


def _examples_of_pair(prompt: PromptText, chosen: str, rejected: str, shape: ExampleShape) -> list[Example]:
    match shape:
        case "demonstrations":
            return [{"prompt": prompt, "completion": chosen}]
        case "pairs":
            _check_different(chosen, rejected)
            return [{"prompt": prompt, "chosen": chosen, "rejected": rejected}]
        case "labelled":
            _check_different(chosen, rejected)
            return [
                {"prompt": prompt, "completion": chosen, "label": True},
                {"prompt": prompt, "completion": rejected, "label": False},
            ]
        case _:
            assert_never(shape)


# --------------------------------------------------------------------------------------------------- fields of a row


def _field(row: Row, name: str) -> Any:
    if row.get(name) is None:
        raise _InvalidRow(f"missing field {name}")
    return row[name]


def _boolean(row: Row, name: str) -> bool:
    value = _field(row, name)
    if not isinstance(value, bool):
        raise _InvalidRow(f"wrong type {name}")
    return value


def _response_id(row: Row, name: str) -> int:
    value = _field(row, name)
    if not isinstance(value, int):
        raise _InvalidRow(f"wrong type {name}")
    if isinstance(value, bool) or value not in (0, 1):
        raise _InvalidRow("id out of range")
    return value


def _messages(value: Any, name: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(
        isinstance(message, dict)
        and message.get("role") in ("system", "user", "assistant")
        and isinstance(message.get("content"), str)
        for message in value
    ):
        raise _InvalidRow(f"wrong type {name}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _prompt(row: Row) -> PromptText:
    value = _field(row, "prompt")
    if isinstance(value, str):
        if not value.strip():
            raise _InvalidRow("empty prompt")
        return value
    return _checked_turns(_messages(value, "prompt"))


def _checked_turns(messages: list[dict[str, str]]) -> PromptText:
    """The prompt of chat messages. Chat templates raise or write wrong text if turns do not alternate."""
    if not messages:
        raise _InvalidRow("empty prompt")
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise _InvalidRow("turns do not alternate")
    if not turns[0]["content"].strip():
        raise _InvalidRow("empty prompt")
    if not all(turn["content"].strip() for turn in turns):
        raise _InvalidRow("empty turn")
    return messages[0]["content"] if len(messages) == 1 else messages


def _response(row: Row, name: str) -> str:
    value = _field(row, name)
    if isinstance(value, list):
        messages = _messages(value, name)
        if [message["role"] for message in messages] != ["assistant"]:
            raise _InvalidRow(f"wrong type {name}")
        value = messages[0]["content"]
    if not isinstance(value, str):
        raise _InvalidRow(f"wrong type {name}")
    if not value.strip():
        raise _InvalidRow("empty response")
    return value.strip()


def _check_different(first: str, second: str) -> None:
    if first == second:
        raise _InvalidRow("identical responses")


def _transcript(row: Row, name: str) -> tuple[list[dict[str, str]], str]:
    """The turns of an hh-rlhf transcript before the last answer, and the last answer."""
    text = _field(row, name)
    if not isinstance(text, str):
        raise _InvalidRow(f"wrong type {name}")
    head, *parts = _TURN.split(text)
    turns = [
        {"role": _ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if head.strip() or not turns or turns[-1]["role"] != "assistant":
        raise _InvalidRow("not a transcript")
    return turns[:-1], turns[-1]["content"]


# ---------------------------------------------------------------------------------------------------- sets of prompts


def prompt_key(prompt: PromptText) -> str:
    """The key by which two prompts count as the same: the first user turn in one case and with single spaces."""
    if not isinstance(prompt, str):
        prompt = next(message["content"] for message in prompt if message["role"] == "user")
    return " ".join(prompt.casefold().split())


def in_fraction(key: str, fraction: float) -> bool:
    """Whether a key is in a fraction of all keys: the same on every machine and for every set of prompts.

    Args:
        key: A key of `prompt_key`.
        fraction: From 0 (no key) to 1 (all keys).

    Returns:
        True for about `fraction` of the keys.
    """
    # A float holds 53 bits exactly; more could round up to 1.
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 11
    return number / 2**53 < fraction


def split_for(examples: Iterable[Example], *, judge_fraction: float, side: Literal["policy", "judge"]) -> list[Example]:
    """Keep the examples of one side. No prompt is on both sides, in any file, objective or shape.

    Args:
        examples: Examples of `convert`.
        judge_fraction: Fraction of the prompts that only judges are trained on.
        side: Whether policies or judges are trained on the result.

    Returns:
        The examples of the side in their order.
    """
    return [e for e in examples if in_fraction(prompt_key(e["prompt"]), judge_fraction) == (side == "judge")]


def exclude(examples: list[Example], keys: frozenset[str]) -> tuple[list[Example], int]:
    """Drop the examples whose prompt is an evaluation prompt.

    Args:
        examples: Examples of `convert`.
        keys: `prompt_key` of each evaluation prompt.

    Returns:
        The remaining examples, and the number of dropped ones.
    """
    kept = [example for example in examples if prompt_key(example["prompt"]) not in keys]
    return kept, len(examples) - len(kept)
