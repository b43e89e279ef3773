"""The prompts that policies answer in an evaluation, read from a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from sacpo.data.fields import is_encodable
from sacpo.data.rows import read_rows
from sacpo.errors import DataError


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
    for number, row in enumerate(read_rows(path, split="train", revision=None), start=1):
        text, category = row.get("prompt"), row.get("category", row.get("type", ""))
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{path}: row {number} has prompt {text!r}; each row needs a text in `prompt`")
        if not is_encodable(text):
            raise DataError(
                f"{path}: row {number} has half of a surrogate pair, which is no character; correct the text"
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
