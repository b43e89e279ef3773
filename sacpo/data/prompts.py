"""The prompts that policies answer in an evaluation, read from a file or a data set."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacpo.data.fields import InvalidRow, is_encodable, is_messages, messages, rendered_ending, transcript, turns_of
from sacpo.data.fields import prompt as prompt_of
from sacpo.data.fields import text as text_of
from sacpo.data.rows import check_invalid_fraction
from sacpo.data.sources import read_rows, rename, rows_of_source, select
from sacpo.errors import DataError
from sacpo.spaces.evaluation import PromptRows


@dataclass(frozen=True)
class Prompt:
    """One evaluation prompt. Its id depends on the text alone, so that results of several sweeps can be joined."""

    prompt_id: str
    text: str
    category: str

    @classmethod
    def of(cls, text: str, category: str) -> Prompt:
        """A prompt whose id is the first 12 hex digits of the SHA-256 of its text."""
        return cls(hashlib.sha256(text.encode()).hexdigest()[:12], text, category)


def read_prompts(path: str, limit: int | None) -> list[Prompt]:
    """Read evaluation prompts.

    Args:
        path: JSON list, JSONL or CSV file with a column `prompt` and, optionally, `category` (else `type`).
        limit: Number of prompts to take from the start; None for all.

    Returns:
        The prompts in the order of the file; the category is empty if the file has none.

    Raises:
        DataError: the file cannot be read, a prompt is missing, empty or a duplicate, or `limit` exceeds the file.
    """
    if not Path(path).is_file():
        raise DataError(
            f"{path}: there is no such file; correct the path to a JSON list, JSONL or CSV file with a column `prompt`"
        )
    prompts: list[Prompt] = []
    first_row: dict[str, int] = {}
    for number, row in enumerate(read_rows(path), start=1):
        text, category = row.get("prompt"), row.get("category", row.get("type", ""))
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{path}: row {number} has prompt {text!r}; each row needs a text in `prompt`")
        if not is_encodable(text + str(category)):
            raise DataError(
                f"{path}: row {number} has half of a surrogate pair, which is no character; correct the text"
            )
        if transcript(text) is not None:
            raise DataError(
                f"{path}: row {number} is a transcript, around which the model's template would be put once more; set "
                "`kind: files`, which takes transcripts apart"
            )
        if ending := rendered_ending(text):
            raise DataError(
                f"{path}: row {number} is in a template already (it ends with {ending}), around which the model's own "
                "would be put; give the bare text"
            )
        if not isinstance(category, str):
            raise DataError(f"{path}: row {number} has category {category!r}; it must be a text, or be left out")
        if text in first_row:
            raise DataError(
                f"{path}: rows {first_row[text]} and {number} hold the same prompt; remove one: {text[:80]!r}"
            )
        first_row[text] = number
        prompts.append(Prompt.of(text, category))
    if limit is not None and limit > len(prompts):
        raise DataError(f"{path}: limit {limit} is more than its {len(prompts)} prompts; lower it, or leave it out")
    return prompts[:limit]


def prompts_of_rows(source: PromptRows) -> list[Prompt]:
    """Read evaluation prompts from the rows of a file, a folder or a hub data set.

    Args:
        source: The source. A prompt is a text, a transcript or a list of messages with one user turn; a transcript or a
            list may end with an answer, which is dropped.

    Returns:
        The first `limit` distinct prompts of one turn, in the order of the rows; the category is that of the column
        `category`, else `type`; it is empty if there is neither.

    Raises:
        DataError: the rows cannot be read, too many are invalid, or there are fewer than `limit`.
    """
    rows = select(rows_of_source(source), source.where, str(source.path))
    rows = rename(rows, source.columns, ("prompt", "category"), str(source.path))
    prompts: dict[str, Prompt] = {}
    invalid: Counter[str] = Counter()
    first_invalid = ""
    for number, row in enumerate(rows, start=1):
        try:
            question = _question(row)
            text = None if question is None else prompt_of(question)
            category = text_of(str(row.get("category", row.get("type")) or ""), "category")
        except InvalidRow as reason:
            invalid[str(reason)] += 1
            first_invalid = first_invalid or f"; the first is row {number}"
        else:
            if isinstance(text, str) and text not in prompts:
                prompts[text] = Prompt.of(text, category)
    way_out = (
        f"each row needs a prompt, and the file has the columns {', '.join(rows.columns())}; name the one with the "
        "prompts (`columns: {prompt: COLUMN}`), correct the rows"
    )
    check_invalid_fraction(invalid, len(rows), source.max_invalid_fraction, str(source.path), way_out, first_invalid)
    if len(prompts) < (source.limit or 1):
        raise DataError(
            f"{source.path}: limit {source.limit} is more than its {len(prompts)} distinct prompts of one turn; lower "
            "it, or leave it out"
        )
    return list(prompts.values())[: source.limit]


def _question(row: dict[str, Any]) -> dict[str, Any] | None:
    """The row without the assistant's turn at the end of its prompt; None if the user has several turns.

    Raises:
        InvalidRow: the messages are malformed.
    """
    value = row.get("prompt")
    if isinstance(value, str) and not is_messages(value):
        turns = turns_of(value)
    else:
        turns = messages(value, "prompt") if is_messages(value) else None
    if not turns:
        return row
    if sum(turn["role"] == "user" for turn in turns) > 1:
        return None
    return {**row, "prompt": turns[:-1]} if turns[-1]["role"] == "assistant" else row
