"""Turns scored responses to pairs and labels: the response rows of HelpSteer, the completions of UltraFeedback."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np

from sacpo.data.fields import InvalidRow, PromptText, Row, is_messages, prompt, response
from sacpo.data.fields import field as value_of
from sacpo.data.stored_rows import CHUNK, Rows
from sacpo.errors import DataError
from sacpo.spaces.methods import ExampleShape

Example = dict[str, Any]


@dataclass(frozen=True)
class Scoring:
    """How scores decide.

    Attributes:
        margin: Smallest difference of the best and the worst score of a pair. Equal scores never give a pair.
        threshold: Score from which on a response is good; None gives no labels.
    """

    margin: float = 0.0
    threshold: float | None = None


UNSCORED = Scoring()
"""The defaults: any difference of scores gives a pair, and no threshold."""


@dataclass
class _Group:
    """The responses to one prompt with their scores."""

    prompt: PromptText
    responses: list[tuple[str, float]] = field(default_factory=list)


def convert_scored(rows: Iterable[Row], shape: ExampleShape, scoring: Scoring) -> tuple[list[Example], Counter[str]]:
    """Turn scored responses into examples.

    Args:
        rows: Rows with prompt, response and score, where the rows of one prompt belong together; or rows with prompt
            and completions, a list of objects with response and score.
        shape: `pairs` gives the best and the worst response of a prompt; `labelled` gives every response;
            `demonstrations` gives the best response of a prompt, if it reaches the threshold.
        scoring: Margin of pairs and threshold of labels.

    Returns:
        The examples in the order in which their prompts occur, and the number of rows that gave none by reason.

    Raises:
        DataError: the shape is `labelled` and there is no threshold.
    """
    if shape == "labelled" and scoring.threshold is None:
        raise DataError("format scored gives labels by a score; set `threshold` to the lowest score of a good response")
    groups: dict[str, _Group] = {}
    reasons: Counter[str] = Counter()
    for row in rows:
        try:
            asked, scored = prompt(row), _scored(row)
        except InvalidRow as reason:
            reasons[str(reason)] += 1
            continue
        groups.setdefault(json.dumps(asked), _Group(asked)).responses.extend(scored)
    examples: list[Example] = []
    for group in groups.values():
        try:
            examples += _examples(group, shape, scoring)
        except InvalidRow as reason:
            reasons[str(reason)] += 1
    return examples, reasons


def whole_prompts(rows: Rows, size: int = CHUNK) -> Iterator[Rows]:
    """The rows in chunks that hold all scored responses of each of their prompts, in the order of the prompts.

    The rows are read twice: here a prompt is 16 bytes. `convert_scored` gives the same for all chunks, one after the
    other, as for all rows.

    Args:
        rows: Rows as `convert_scored` takes them; those of one prompt may stand anywhere.
        size: Smallest number of rows of a chunk, except for the last one.
    """
    import pyarrow as pa

    digests = pa.array((_prompt_digest(row, number) for number, row in enumerate(rows)), pa.binary(16))
    prompts = digests.dictionary_encode().indices.to_numpy()  # numbers in the order of first use
    order = np.argsort(prompts, kind="stable")
    ends = [*(np.flatnonzero(np.diff(prompts[order])) + 1).tolist(), len(order)]
    start = 0
    for end in ends:
        if end - start >= size or start < end == len(order):
            yield rows.take(order[start:end].tolist())
            start = end


def _prompt_digest(row: Row, number: int) -> bytes:
    """Equal for the valid rows of one prompt; an invalid row stands alone."""
    try:
        asked, _ = prompt(row), _scored(row)
        text = json.dumps(asked)
    except InvalidRow:
        text = f"row {number}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _scored(row: Row) -> list[tuple[str, float]]:
    if "completions" not in row:
        return [(response(row, "response"), _score(row))]
    completions = value_of(row, "completions")
    if not isinstance(completions, list) or (is_messages(completions) and "role" in str(completions[:1])):
        raise InvalidRow("wrong type completions")
    if not all(isinstance(completion, dict) for completion in completions):
        raise InvalidRow("wrong type completions")
    return [(response(completion, "response"), _score(completion)) for completion in completions]


def _score(row: Row) -> float:
    value = value_of(row, "score")
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidRow("wrong type score")
    return number


def _examples(group: _Group, shape: ExampleShape, scoring: Scoring) -> list[Example]:
    (best, highest) = max(group.responses, key=lambda scored: scored[1], default=("", 0.0))
    (worst, lowest) = min(group.responses, key=lambda scored: scored[1], default=("", 0.0))
    match shape:
        case "pairs":
            if len(group.responses) < 2:
                raise InvalidRow("one response only")
            if highest == lowest or highest - lowest < scoring.margin:
                raise InvalidRow("no two scores are the margin apart")
            if best == worst:
                raise InvalidRow("identical responses")
            return [{"prompt": group.prompt, "chosen": best, "rejected": worst}]
        case "labelled":
            assert scoring.threshold is not None  # checked by the caller
            return [
                {"prompt": group.prompt, "completion": text, "label": score >= scoring.threshold}
                for text, score in group.responses
            ]
        case "demonstrations":
            if not group.responses or (scoring.threshold is not None and highest < scoring.threshold):
                return []
            return [{"prompt": group.prompt, "completion": best}]
        case _:
            assert_never(shape)
