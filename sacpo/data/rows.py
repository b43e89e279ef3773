"""Rows of data files: reading them from every format, drawing some, refusing files with too many bad ones."""

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

from sacpo.errors import DataError

_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def read_rows(path: str, *, split: str, revision: str | None) -> list[dict[str, Any]]:
    """Read all rows of a file, a `datasets` folder or a hub dataset.

    Args:
        path: JSONL, JSON, CSV or Parquet file (each may be .gz), folder of `save_to_disk`, or hub id.
        split: The split of a folder with splits or of a hub dataset; a file has only `train`.
        revision: The commit of a hub dataset; None for anything local.

    Returns:
        The rows, each a dict by column. There is at least one.

    Raises:
        DataError: if the rows cannot be read, or `split` or `revision` would have no effect.
    """
    where = Path(path)
    if where.exists() and revision is not None:
        raise DataError(f"{path}: is local, so revision {revision!r} would have no effect; leave `revision` out")
    if where.is_dir():
        rows = _read_folder(path, split)
    elif where.exists():
        if split != "train":
            raise DataError(f"{path}: a file has no split {split!r}; leave `split` out, or name the file of that split")
        rows = _read_file(where)
    elif where.is_absolute() or where.name.removesuffix(".gz").endswith(_SUFFIXES) or revision is None:
        raise DataError(f"{path}: there is no such file; mend the path, or give a hub id with its `revision`")
    else:
        rows = _read_hub(path, split, revision)
    if not rows:
        raise DataError(f"{path}: has no rows; at least one is needed, so check that the file was written whole")
    return rows


def _read_file(path: Path) -> list[dict[str, Any]]:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in _SUFFIXES:
        raise DataError(
            f"{path}: unknown suffix {suffix!r}; allowed are {', '.join(_SUFFIXES)}, each also with .gz; "
            "rename or convert the file"
        )
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; check its permissions and that it is whole") from None
    if suffix == ".parquet":
        return _read_parquet(path, raw)
    try:
        # A byte order mark is no part of the first key.
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is not UTF-8: byte {raw[error.start]:#04x} at byte offset {error.start}; "
            "convert it, for example with iconv -t UTF-8"
        ) from None
    if suffix == ".csv":
        return _read_csv(path, text)
    return _read_json(path, text) if suffix == ".json" else _read_jsonl(path, text)


def _read_jsonl(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    # Not splitlines(): JSON texts may hold U+2028 and the like, which are no line ends here.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(_object(json.loads(line), path, f"line {number}"))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}: line {number} is not JSON ({error}); each line is one JSON object") from None
    return rows


def _read_json(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: is not JSON ({error}); a .json file is one list of objects; call one object a line .jsonl"
        ) from None
    if not isinstance(rows, list):
        raise DataError(f"{path}: holds a {type(rows).__name__}; a .json file is one list of objects")
    return [_object(row, path, f"row {number}") for number, row in enumerate(rows, start=1)]


def _object(row: Any, path: Path, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{path}: {where} is a {type(row).__name__}; each row is a JSON object of columns")
    return row


def _read_csv(path: Path, text: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}: the row that ends at line {reader.line_num} has not the header's "
                    f"{len(reader.fieldnames or [])} cells; quote cells that hold commas or line ends"
                )
            rows.append({name: _cell(name, cell) for name, cell in row.items()})
    except csv.Error as error:
        raise DataError(f"{path}: is not CSV at line {reader.line_num}: {error}; check its quotes") from None
    return rows


def _cell(name: str, cell: str) -> Any:
    """CSV has only text: the columns that hold flags and ids get their types back, all others stay text."""
    if (name == "label" or name.startswith("is_")) and cell.lower() in ("true", "false"):
        return cell.lower() == "true"
    if name.endswith("_response_id") and re.fullmatch(r"-?[0-9]+", cell):
        return int(cell)
    return cell


def _read_parquet(path: Path, raw: bytes) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(pa.BufferReader(raw)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is not Parquet: {error}; write it again") from None
    return rows


def _read_folder(path: str, split: str) -> list[dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_from_disk(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no folder of `Dataset.save_to_disk` ({error}); name a file in it") from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(f"{path}: has no split {split!r}; it has {', '.join(loaded)}; set `split` to one of them")
        loaded = loaded[split]
    elif split != "train":
        raise DataError(f"{path}: is one data set without splits, so split {split!r} has no effect; leave it out")
    rows: list[dict[str, Any]] = loaded.to_list()
    return rows


def _read_hub(path: str, split: str, revision: str) -> list[dict[str, Any]]:
    import datasets

    try:
        rows: list[dict[str, Any]] = datasets.load_dataset(path, revision=revision, split=split).to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{path}: is no local file, and the hub gave no split {split!r} of revision {revision!r}: {error}; "
            "mend `path`, `revision` or `split`, or download the data and name the folder"
        ) from None
    return rows


def draw(rows: list[dict[str, Any]], limit: int | None, seed: int) -> list[dict[str, Any]]:
    """Draw rows without replacement.

    Args:
        rows: The rows to draw from.
        limit: How many; None for all.
        seed: Of the draw.

    Returns:
        The drawn rows in their original order.

    Raises:
        DataError: if there are fewer rows than `limit`.
    """
    if limit is None:
        return rows
    if limit > len(rows):
        raise DataError(f"limit {limit} is more than the {len(rows)} rows there are; lower it, or leave it out for all")
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), limit))]


def check_share(bad: Counter[str], total: int, max_invalid_fraction: float, path: str) -> None:
    """Refuse a file with too many bad rows.

    Args:
        bad: Bad rows by reason.
        total: All rows, good and bad.
        max_invalid_fraction: The share of bad rows that is allowed.
        path: The file, for the message.

    Raises:
        DataError: with every reason and its count.
    """
    count = bad.total()
    # The quotient, not max_invalid_fraction * total: 29 of 100 is not more than 0.29, but 0.29 * 100 rounds below 29.
    if count and count / total > max_invalid_fraction:
        reasons = ", ".join(f"{reason}: {number}" for reason, number in bad.most_common())
        raise DataError(
            f"{path}: {count} of {total} rows are bad ({count / total:.2%}; max_invalid_fraction allows {max_invalid_fraction:.2%}): "
            f"{reasons}; mend the file or its `format`, or raise max_invalid_fraction"
        )
