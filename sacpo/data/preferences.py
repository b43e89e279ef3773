"""Preference rows: turning each format into examples, and keeping sets of prompts apart.

An example's `prompt` is a text, or a list of chat messages when it has several turns; its responses are texts. What a
row lacks is counted by reason and left out, so that the caller can refuse a file with too many bad rows.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from sacpo.data.rows import check_share, draw, read_rows
from sacpo.errors import DataError

__all__ = [
    "Prompt",
    "Shape",
    "check_share",
    "convert",
    "draw",
    "exclude",
    "in_share",
    "prompt_key",
    "read_rows",
    "split_for",
]

Shape = Literal["pairs", "labelled", "demonstrations"]
Prompt = str | list[dict[str, str]]

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class _BadRow(Exception):
    """Why a row is left out; the text is the reason under which it is counted."""


def convert(
    rows: Iterable[dict[str, Any]], *, format: str, objective: str | None, shape: Shape
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Turn rows of a known format into the examples that a stage wants.

    Args:
        rows: What `read_rows` gave.
        format: One of `sacpo.spaces.space.Files.format`.
        objective: What is preferred. It picks pku-saferlhf's columns; the other formats carry one objective.
        shape: `pairs` gives prompt, chosen, rejected; `labelled` gives prompt, completion, label; `demonstrations`
            gives prompt, completion.

    Returns:
        The examples in the rows' order, and the count of rows left out by reason.

    Raises:
        DataError: if the format cannot give the shape, or pku-saferlhf is asked for no objective.
    """
    if format == "pku-saferlhf" and objective is None:
        raise DataError("format pku-saferlhf needs an objective, such as helpfulness, to say which response is meant")
    if (format == "labelled" and shape == "pairs") or (format == "demonstrations" and shape != "demonstrations"):
        raise DataError(
            f"format {format} cannot give {shape}; use a format with both responses (pairs, hh-rlhf, pku-saferlhf)"
            + ("" if format == "demonstrations" else ", or train the stage with kto, which takes labelled rows")
        )
    examples: list[dict[str, Any]] = []
    bad: Counter[str] = Counter()
    for row in rows:
        try:
            examples += _examples(row, format, objective, shape)
        except _BadRow as reason:
            bad[str(reason)] += 1
    return examples, bad


def _examples(row: dict[str, Any], format: str, objective: str | None, shape: Shape) -> list[dict[str, Any]]:
    if format in ("labelled", "demonstrations"):
        label = _flag(row, "label") if format == "labelled" else True
        example = {"prompt": _prompt(row), "completion": _response(row, "completion")}
        if shape == "labelled":
            return [{**example, "label": label}]
        return [example] if label else []
    if format == "pku-saferlhf":
        prompt = _prompt(row)
        responses = [_response(row, f"response_{i}") for i in (0, 1)]
        if shape == "labelled" and objective == "harmlessness":
            labels = [_flag(row, f"is_response_{i}_safe") for i in (0, 1)]
            _differ(*responses)
            return [
                {"prompt": prompt, "completion": response, "label": label}
                for response, label in zip(responses, labels, strict=True)
            ]
        columns = {"helpfulness": "better_response_id", "harmlessness": "safer_response_id"}
        preferred = _id(row, columns.get(str(objective), f"{objective}_response_id"))
        chosen, rejected = responses[preferred], responses[1 - preferred]
    elif format == "hh-rlhf":
        prompt, chosen, rejected = _transcripts(row)
    else:
        prompt, chosen, rejected = _prompt(row), _response(row, "chosen"), _response(row, "rejected")
    if shape == "demonstrations":
        return [{"prompt": prompt, "completion": chosen}]
    _differ(chosen, rejected)
    if shape == "pairs":
        return [{"prompt": prompt, "chosen": chosen, "rejected": rejected}]
    return [
        {"prompt": prompt, "completion": chosen, "label": True},
        {"prompt": prompt, "completion": rejected, "label": False},
    ]


def _field(row: dict[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise _BadRow(f"missing field {name}")
    return row[name]


def _flag(row: dict[str, Any], name: str) -> bool:
    value = _field(row, name)
    if not isinstance(value, bool):
        raise _BadRow(f"wrong type {name}")
    return value


def _id(row: dict[str, Any], name: str) -> int:
    value = _field(row, name)
    if not isinstance(value, int):
        raise _BadRow(f"wrong type {name}")
    if isinstance(value, bool) or value not in (0, 1):
        raise _BadRow("id out of range")
    return value


def _messages(value: Any, name: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(
        isinstance(message, dict)
        and message.get("role") in ("system", "user", "assistant")
        and isinstance(message.get("content"), str)
        for message in value
    ):
        raise _BadRow(f"wrong type {name}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _prompt(row: dict[str, Any]) -> Prompt:
    value = _field(row, "prompt")
    if isinstance(value, str):
        if not value.strip():
            raise _BadRow("empty prompt")
        return value
    return _checked(_messages(value, "prompt"))


def _checked(messages: list[dict[str, str]]) -> Prompt:
    """Chat templates refuse or garble turns that do not alternate, so no such prompt may reach one."""
    if not messages:
        raise _BadRow("empty prompt")
    turns = messages[1:] if messages[0]["role"] == "system" else messages
    if [turn["role"] for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise _BadRow("turns do not alternate")
    if not turns[0]["content"].strip():
        raise _BadRow("empty prompt")
    if not all(turn["content"].strip() for turn in turns):
        raise _BadRow("empty turn")
    return messages[0]["content"] if len(messages) == 1 else messages


def _response(row: dict[str, Any], name: str) -> str:
    value = _field(row, name)
    if isinstance(value, list):
        messages = _messages(value, name)
        if [message["role"] for message in messages] != ["assistant"]:
            raise _BadRow(f"wrong type {name}")
        value = messages[0]["content"]
    if not isinstance(value, str):
        raise _BadRow(f"wrong type {name}")
    if not value.strip():
        raise _BadRow("empty response")
    return value.strip()


def _differ(first: str, second: str) -> None:
    if first == second:
        raise _BadRow("identical responses")


def _transcripts(row: dict[str, Any]) -> tuple[Prompt, str, str]:
    (prompt, chosen), (other, rejected) = _transcript(row, "chosen"), _transcript(row, "rejected")
    if prompt != other:
        raise _BadRow("transcripts diverge before the last answer")
    if not chosen or not rejected:
        raise _BadRow("empty response")
    return _checked(prompt), chosen, rejected


def _transcript(row: dict[str, Any], name: str) -> tuple[list[dict[str, str]], str]:
    text = _field(row, name)
    if not isinstance(text, str):
        raise _BadRow(f"wrong type {name}")
    head, *parts = _TURN.split(text)
    turns = [
        {"role": _ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if head.strip() or not turns or turns[-1]["role"] != "assistant":
        raise _BadRow("not a transcript")
    return turns[:-1], turns[-1]["content"]


def prompt_key(prompt: Prompt) -> str:
    """The canonical text of the first human turn: what makes two prompts the same when sets are kept apart.

    Args:
        prompt: A text or chat messages.

    Returns:
        The text in one case with single spaces.
    """
    if not isinstance(prompt, str):
        prompt = next(message["content"] for message in prompt if message["role"] == "user")
    return " ".join(prompt.casefold().split())


def in_share(key: str, share: float) -> bool:
    """Whether a key falls into a share of all keys; the same on every machine and for every set of prompts.

    Args:
        key: What `prompt_key` gave.
        share: From 0 (no key) to 1 (all).

    Returns:
        True for about `share` of the keys.
    """
    # 53 bits, which a float holds exactly: more could round up to 1.
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 11
    return number / 2**53 < share


def split_for(
    examples: Iterable[dict[str, Any]], *, judge_fraction: float, side: Literal["policy", "judge"]
) -> list[dict[str, Any]]:
    """The examples of one side; no prompt is on both, whatever the file, the objective and the shape.

    Args:
        examples: What `convert` gave.
        judge_fraction: The share of prompts that is kept for judges.
        side: Who trains on them.

    Returns:
        The side's examples in their order.
    """
    return [e for e in examples if in_share(prompt_key(e["prompt"]), judge_fraction) == (side == "judge")]


def exclude(examples: list[dict[str, Any]], keys: frozenset[str]) -> tuple[list[dict[str, Any]], int]:
    """Drop the examples that ask an evaluation's prompt.

    Args:
        examples: What `convert` gave.
        keys: `prompt_key` of each evaluation prompt.

    Returns:
        The examples that are left, and how many were dropped.
    """
    kept = [example for example in examples if prompt_key(example["prompt"]) not in keys]
    return kept, len(examples) - len(kept)
