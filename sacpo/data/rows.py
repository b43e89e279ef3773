"""Reads the rows of data files, draws a subset, and refuses sources with too many invalid rows."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

from sacpo.data.stored_rows import (
    JSONLinesPart,
    ListPart,
    Part,
    RepeatedKey,
    Row,
    Rows,
    TablePart,
    as_object,
    not_utf8,
    parse_json,
)
from sacpo.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
"""Kinds of files that can be read; each may be compressed (.gz)."""

UNUSED = frozenset({"no two scores are the margin apart", "one response only"})
"""Reasons for which valid rows of the format `scored` give no pair. They do not count as invalid."""

_GZIP = b"\x1f\x8b"
"""First bytes of a compressed file, whatever its name."""

csv.field_size_limit(2**31 - 1)  # the default refuses cells above 128 KiB, which conversations exceed


def read_file(path: Path) -> Part:
    """The rows of one JSONL, JSON, CSV or Parquet file, which may end in .gz.

    Its content says whether it is compressed. JSON lines and Parquet stay as they are stored until rows are needed;
    JSON lists and CSV are parsed at once.

    Raises:
        DataError: the file cannot be read, or is none of these.
    """
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in SUFFIXES:
        raise DataError(
            f"{path}: unknown suffix {suffix!r}; allowed are {', '.join(SUFFIXES)}, each also with .gz; "
            "rename or convert the file"
        )
    content = None
    try:
        with path.open("rb") as file:
            is_compressed = file.read(2) == _GZIP
        if is_compressed:
            content = gzip.decompress(path.read_bytes())
        if suffix == ".parquet":
            return _read_parquet(path, content)
        if suffix == ".jsonl":
            return JSONLinesPart(path, content)
        # Without this, a byte order mark would become part of the first key.
        text = (path.read_bytes() if content is None else content).decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; check its permissions and that it is complete") from None
    return ListPart(_read_csv(path, text) if suffix == ".csv" else _read_json(path, text))


def _read_json(path: Path, text: str) -> list[Row]:
    try:
        rows = parse_json(text) if text.strip() else []
    except RepeatedKey as error:
        raise DataError(f"{path}: {error}; keep one of them") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: is not JSON ({error}); a .json file must hold one list of objects; a file with one object "
            "per line must be named .jsonl"
        ) from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a {type(rows).__name__}; a .json file must hold one list of objects")
    return [as_object(row, path, f"row {number}") for number, row in enumerate(rows, start=1)]


def _read_csv(path: Path, text: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        names = reader.fieldnames or []
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"{path}: has several columns {', '.join(repeated)}; rename or remove all but one")
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}: the row that ends at line {reader.line_num} does not have the header's "
                    f"{len(names)} cells; quote cells that contain commas or line breaks"
                )
            rows.append({name: _cell(name, cell) for name, cell in row.items()})
    except csv.Error as error:
        raise DataError(f"{path}: is not CSV at line {reader.line_num}: {error}; check its quotes") from None
    return rows


def _cell(name: str, cell: str) -> Any:
    """A CSV cell with its type: flags and ids by the name of their column; all other cells are text."""
    if (name == "label" or name.startswith("is_")) and cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    if name.endswith("_response_id") and re.fullmatch(r"-?[0-9]+", cell):
        return int(cell)
    return cell


def _read_parquet(path: Path, content: bytes | None) -> Part:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path if content is None else pa.BufferReader(content))
        if repeated := [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]:
            raise DataError(f"{path}: has several columns {', '.join(repeated)}; rename or remove all but one")
        return TablePart(file.read())
    except pa.ArrowException as error:
        raise DataError(f"{path}: is not Parquet: {error}; write the file again") from None


def draw(rows: Rows, limit: int | None, seed: int) -> Rows:
    """Draw rows without replacement.

    Args:
        rows: Rows to draw from.
        limit: Number of rows to draw; None for all.
        seed: Seed of the draw.

    Returns:
        The drawn rows in their original order.

    Raises:
        DataError: there are fewer rows than `limit`.
    """
    if limit is None:
        return rows
    if limit > len(rows):
        raise DataError(f"limit {limit} is more than the {len(rows)} rows; lower it, or leave it out to use all rows")
    return rows.take(sorted(random.Random(seed).sample(range(len(rows)), limit)))


def check_invalid_fraction(
    invalid: Counter[str],
    total: int,
    max_invalid_fraction: float,
    source: str,
    way_out: str = "correct the file or its `format`",
    hint: str = "",
) -> None:
    """Refuse a source with too many invalid rows.

    Args:
        invalid: Number of invalid rows by reason.
        total: Number of all rows, valid and invalid.
        max_invalid_fraction: Largest fraction of invalid rows that is allowed.
        source: Name of the source for the message.
        way_out: What can be done about them, besides allowing more of them.
        hint: More text for the end of the message.

    Raises:
        DataError: the fraction is larger; lists every reason and its count.
    """
    invalid = Counter({reason: number for reason, number in invalid.items() if reason not in UNUSED})
    count = invalid.total()
    # Compares the quotient: 29 of 100 is not more than 0.29, but 0.29 * 100 rounds to less than 29.
    if count and count / total > max_invalid_fraction:
        reasons = ", ".join(f"{reason}: {number}" for reason, number in invalid.most_common())
        raise DataError(
            f"{source}: {count} of {total} rows are invalid ({count / total:.2%}; max_invalid_fraction allows "
            f"{max_invalid_fraction:.2%}): {reasons}; {way_out}, or raise max_invalid_fraction{hint}"
        )
