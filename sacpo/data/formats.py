"""The columns of each format, and the format that fits a file's columns best."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sacpo.errors import SacpoError
from sacpo.spaces.space import RowFormat

_PKU = ("prompt", "response_0", "response_1")
_PKU_OPTIONAL = ("better_response_id", "safer_response_id", "is_response_0_safe", "is_response_1_safe")

EXAMPLES: dict[RowFormat, str] = {
    "pku-saferlhf": '{"prompt": "Hi?", "response_0": "Hello.", "response_1": "No.", "better_response_id": 0}',
    "hh-rlhf": r'{"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."}',
    "pairs": '{"prompt": "Hi?", "chosen": "Hello.", "rejected": "No."}',
    "labelled": '{"prompt": "Hi?", "completion": "Hello.", "label": true}',
    "demonstrations": '{"prompt": "Hi?", "completion": "Hello."}',
    "scored": '{"prompt": "Hi?", "response": "Hello.", "score": 4}',
}
"""One row of each format as JSON."""

REQUIRED: dict[RowFormat, tuple[frozenset[str], ...]] = {
    "pku-saferlhf": (frozenset(_PKU),),
    "hh-rlhf": (frozenset({"chosen", "rejected"}),),
    "pairs": (frozenset({"prompt", "chosen", "rejected"}), frozenset({"chosen", "rejected"})),
    "labelled": (frozenset({"prompt", "completion", "label"}),),
    "demonstrations": (frozenset({"prompt", "completion"}),),
    "scored": (frozenset({"prompt", "response", "score"}), frozenset({"prompt", "completions"})),
}
"""Columns that a row of each format has; several sets are alternatives."""


def readable_columns(format: RowFormat, objective: str | None) -> tuple[str, ...]:
    """The columns that a format reads, for `columns` of a source."""
    if format == "pku-saferlhf":
        return tuple(dict.fromkeys((*_PKU, *_PKU_OPTIONAL, *([f"{objective}_response_id"] if objective else []))))
    return tuple(sorted(frozenset().union(*REQUIRED[format])))


def nearest_format(columns: Iterable[str]) -> RowFormat:
    """The format of which a file has the largest fraction of the columns; of equals, the one with more of them."""
    present = set(columns)

    def fit(format: RowFormat) -> tuple[float, int]:
        return max((len(required & present) / len(required), len(required & present)) for required in REQUIRED[format])

    return max(REQUIRED, key=fit)


def format_hint(format: RowFormat, columns: Iterable[str]) -> str:
    """The end of a message about rows that do not fit a format: the file's columns, the nearest format, an example."""
    columns = list(columns)
    nearest = nearest_format(columns)
    hint = f". The file has the columns {', '.join(columns)}; format {format} wants rows such as {EXAMPLES[format]}"
    if nearest != format:
        hint += f"; the nearest format is {nearest}, with rows such as {EXAMPLES[nearest]}"
    return hint + "; `columns: {prompt: question}` renames a column"


def source_hint(source: Mapping[str, Any], folder: Path) -> str:
    """The end of an error about a source's `format`: the columns of its local file, and the nearest format.

    Args:
        source: The source's settings, unchecked.
        folder: Folder of the space file.

    Returns:
        An empty text if there is no local file that can be read.
    """
    from sacpo.data.sources import read_rows  # only here: this is the one place where a plan needs rows

    given: Any = source.get("path")
    try:
        paths = [str(folder / path) for path in (given if isinstance(given, list) else [given])]
        part = {name: source[name] for name in ("split", "name", "data_dir", "data_files") if name in source}
        columns = read_rows(paths if isinstance(given, list) else paths[0], **part)[:100].columns()
    except (SacpoError, TypeError, AttributeError):
        return ""
    nearest = nearest_format(columns)
    return (
        f". The file has the columns {', '.join(columns)}; the nearest format is {nearest}, with rows such as "
        f"{EXAMPLES[nearest]}"
    )


_WORD = re.compile(r"\w")


def special_tokens(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Matches special tokens of a tokenizer that are written in a text; None if there are none to look for.

    A tokenizer may use an ordinary word or sign as padding, so only tokens that begin and end as markup count.
    """
    marked = [t for t in tokens if len(t) > 2 and not _WORD.match(t[0]) and not _WORD.match(t[-1]) and _WORD.search(t)]
    return re.compile("|".join(map(re.escape, sorted(marked, key=len, reverse=True)))) if marked else None
