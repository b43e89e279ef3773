"""Turns preference rows of each format into training examples, and keeps sets of prompts apart.

The `prompt` of an example is a text, or a list of chat messages if it has several turns; its responses are texts.
Invalid rows are left out and counted by reason, so that the caller can refuse a file with too many of them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from sacpo.data.fields import (
    InvalidRow,
    Messages,
    PromptText,
    Row,
    boolean,
    checked_turns,
    field,
    is_messages,
    messages,
    prompt,
    response,
    response_id,
    text,
    transcript,
    turns_of,
)
from sacpo.data.scores import UNSCORED, Scoring, convert_scored
from sacpo.errors import DataError
from sacpo.spaces.methods import ExampleShape
from sacpo.spaces.space import RowFormat

Example = dict[str, Any]


# --------------------------------------------------------------------------------------------------------- the formats


def convert(
    rows: Iterable[Row],
    *,
    format: RowFormat,
    objective: str | None,
    shape: ExampleShape,
    scoring: Scoring = UNSCORED,
) -> tuple[list[Example], Counter[str]]:
    """Turn rows of a known format into training examples.

    Args:
        rows: Rows as `sacpo.data.rows.read_rows` returns them.
        format: Format of the rows.
        objective: Objective of the preferences, which picks the columns of pku-saferlhf; other formats hold one
            objective.
        shape: `pairs` gives prompt, chosen, rejected; `labelled` gives prompt, completion, label; `demonstrations`
            gives prompt, completion.
        scoring: How scores become pairs and labels, for the format `scored`.

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
    if format == "scored":
        return convert_scored(rows, shape, scoring)
    examples: list[Example] = []
    invalid: Counter[str] = Counter()
    for row in rows:
        try:
            examples += reader.read(row, objective, shape)
        except InvalidRow as reason:
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
    asked, responses = prompt(row), [response(row, f"response_{i}") for i in (0, 1)]
    if shape == "labelled" and objective == "harmlessness":
        labels = [boolean(row, f"is_response_{i}_safe") for i in (0, 1)]
        _check_different(*responses)
        return [
            {"prompt": asked, "completion": completion, "label": label}
            for completion, label in zip(responses, labels, strict=True)
        ]
    columns = {"helpfulness": "better_response_id", "harmlessness": "safer_response_id"}
    preferred = response_id(row, columns.get(str(objective), f"{objective}_response_id"))
    return _examples_of_pair(asked, responses[preferred], responses[1 - preferred], shape)


def _read_hh(row: Row, objective: str | None, shape: ExampleShape) -> list[Example]:
    (turns, chosen), (other_turns, rejected) = _conversation(row, "chosen"), _conversation(row, "rejected")
    if turns != other_turns:
        raise InvalidRow("transcripts diverge before the last answer")
    if not chosen or not rejected:
        raise InvalidRow("empty response")
    return _examples_of_pair(checked_turns(turns), chosen, rejected, shape)


def _read_pair(row: Row, objective: str | None, shape: ExampleShape) -> list[Example]:
    """A prompt with two responses; or two whole conversations, whose shared beginning is the prompt (as in TRL)."""
    if _is_conversation(row.get("chosen")) and _is_conversation(row.get("rejected")):
        examples = _read_hh(row, objective, shape)
        if row.get("prompt") and prompt_key(prompt(row)) != prompt_key(examples[0]["prompt"]):
            raise InvalidRow("the conversations do not begin with the prompt beside them")
        return examples
    return _examples_of_pair(prompt(row), response(row, "chosen"), response(row, "rejected"), shape)


def _is_conversation(value: Any) -> bool:
    """Whether a field holds messages of more than one turn."""
    return is_messages(value) and len(messages(value, "chosen")) > 1


def _read_labelled(row: Row, objective: str | None, shape: ExampleShape) -> list[Example]:
    label = boolean(row, "label")
    example = {"prompt": prompt(row), "completion": response(row, "completion")}
    if shape == "labelled":
        return [{**example, "label": label}]
    return [example] if label else []


def _read_demonstration(row: Row, objective: str | None, shape: ExampleShape) -> list[Example]:
    return [{"prompt": prompt(row), "completion": response(row, "completion")}]


FORMATS: dict[RowFormat, RowReader] = {
    "pku-saferlhf": RowReader(("pairs", "labelled", "demonstrations"), _read_pku, needs_objective=True),
    "hh-rlhf": RowReader(("pairs", "labelled", "demonstrations"), _read_hh),
    "pairs": RowReader(("pairs", "labelled", "demonstrations"), _read_pair),
    "labelled": RowReader(("labelled", "demonstrations"), _read_labelled),
    "demonstrations": RowReader(("demonstrations",), _read_demonstration),
    # Rows of one prompt belong together, so `convert` reads this format as a whole.
    "scored": RowReader(("pairs", "labelled", "demonstrations"), _read_demonstration),
}
"""The reader of each format."""


def _examples_of_pair(asked: PromptText, chosen: str, rejected: str, shape: ExampleShape) -> list[Example]:
    match shape:
        case "demonstrations":
            return [{"prompt": asked, "completion": chosen}]
        case "pairs":
            _check_different(chosen, rejected)
            return [{"prompt": asked, "chosen": chosen, "rejected": rejected}]
        case "labelled":
            _check_different(chosen, rejected)
            return [
                {"prompt": asked, "completion": chosen, "label": True},
                {"prompt": asked, "completion": rejected, "label": False},
            ]
        case _:
            assert_never(shape)


def _check_different(first: str, second: str) -> None:
    if first == second:
        raise InvalidRow("identical responses")


def _conversation(row: Row, name: str) -> tuple[Messages, str]:
    """The turns before the last answer of a whole conversation (messages or an hh-rlhf transcript), and that answer."""
    value = field(row, name)
    turns = messages(value, name) if is_messages(value) else turns_of(text(value, name))
    if not turns or turns[-1]["role"] != "assistant":
        raise InvalidRow("not a transcript" if isinstance(value, str) else f"{name} does not end with an answer")
    return turns[:-1], turns[-1]["content"].strip()


# ---------------------------------------------------------------------------------------------------- sets of prompts

_KEYBOARD = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u2032", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u2033", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
    | dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", "")
)
"""Typographic quotes and dashes to those of a keyboard; invisible characters to nothing."""
_SPEAKER = re.compile(r"(?:#+ ?)?(?:human|user|question|instruction|prompt|q): ")
"""The name of the speaker before a prompt."""


def prompt_key(asked: PromptText) -> str:
    """The key by which two prompts count as the same, in whichever format they are stored.

    It is the first user turn (of messages, or of a text that is a transcript) in Unicode's compatibility form (NFKC),
    in one case, with single spaces, without invisible characters, with the keyboard's quotes and hyphens, and without
    the speaker's name before it (`User: `).
    """
    turns = transcript(asked) if isinstance(asked, str) else asked
    first = asked if turns is None else next(turn["content"] for turn in turns if turn["role"] == "user")
    key = " ".join(unicodedata.normalize("NFKC", str(first).translate(_KEYBOARD)).casefold().split())
    return key.removeprefix(speaker[0]) if (speaker := _SPEAKER.match(key)) else key


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
