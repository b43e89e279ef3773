"""Rows as they are stored: JSON lines in their file, tables in Arrow. A chunk of them at a time becomes Python objects.

A million rows of conversations as Python objects need several gigabytes; here a row costs a few numbers.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from sacpo.errors import DataError

Row = dict[str, Any]
Numbers = np.ndarray[Any, np.dtype[np.int64]]
CHUNK = 8192
"""Rows that are Python objects at a time."""


class Part(Protocol):
    """Rows of one file."""

    def __len__(self) -> int: ...

    def rows(self, numbers: Numbers) -> list[Row]:
        """The rows with these numbers, in their order."""


class ListPart:
    """Rows that are Python objects already."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, numbers: Numbers) -> list[Row]:
        """See `Part`."""
        return [self._rows[number] for number in numbers]


class TablePart:
    """Rows of an Arrow table, or of a data set of `datasets`, whose table is mapped from disk.

    Args:
        table: A `pyarrow.Table`.
    """

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def rows(self, numbers: Numbers) -> list[Row]:
        """See `Part`."""
        if (np.diff(numbers) == 1).all():  # a slice copies nothing
            part = self._table.slice(int(numbers[0]), len(numbers))
        else:
            part = self._table.take(numbers)
        rows: list[Row] = part.to_pylist()
        return rows


class JSONLinesPart:
    """Rows of a file with one JSON object a line, which are parsed when they are needed.

    Args:
        path: The file, for errors.
        content: Its bytes where it is compressed; None reads them from the file.
    """

    def __init__(self, path: Path, content: bytes | None) -> None:
        self._path, self._content = path, content
        starts, lines = [], []
        position = 0
        with self._open() as file:
            # Lines of bytes end at line feeds alone; those of a text also at U+2028, which may be inside JSON texts.
            for number, line in enumerate(file, start=1):
                if line.removeprefix(codecs.BOM_UTF8).strip() if number == 1 else not line.isspace():
                    starts.append(position)
                    lines.append(number)
                position += len(line)
        self._starts, self._lines = np.array(starts, np.int64), np.array(lines, np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    def rows(self, numbers: Numbers) -> list[Row]:
        """See `Part`.

        Raises:
            DataError: a line is not UTF-8, not JSON or no object.
        """
        rows = []
        with self._open() as file:
            for start, line in zip(self._starts[numbers].tolist(), self._lines[numbers].tolist(), strict=True):
                if file.tell() != start:
                    file.seek(start)
                rows.append(self._parsed(file.readline(), start, line))
        return rows

    def _open(self) -> io.BufferedIOBase:
        return self._path.open("rb") if self._content is None else io.BytesIO(self._content)

    def _parsed(self, raw: bytes, start: int, number: int) -> Row:
        # A byte order mark would become part of the first key.
        try:
            row = parse_json(raw.decode().removeprefix("\ufeff"))
        except RepeatedKey as error:
            raise DataError(f"{self._path}: line {number}: {error}; keep one of them") from None
        except UnicodeDecodeError as error:
            raise not_utf8(self._path, error, start) from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self._path}: line {number} is not JSON ({error}); each line is one JSON object"
            ) from None
        return as_object(row, self._path, f"line {number}")


class Rows(Sequence[Row]):
    """A sequence of rows over the parts that hold them. Slices and selections copy no row.

    Args:
        parts: Where the rows are.
        numbers: Numbers of the rows, counted over all parts; None takes all.
        changes: Functions that each row goes through when it is read.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        numbers: Numbers | None = None,
        changes: tuple[Callable[[Row], Row], ...] = (),
    ) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self._numbers = np.arange(self._ends[-1] if len(parts) else 0) if numbers is None else numbers
        self._changes = changes

    @classmethod
    def of(cls, rows: list[Row]) -> Rows:
        """Rows that are Python objects already."""
        return cls([ListPart(rows)])

    @classmethod
    def joined(cls, several: Iterable[Rows]) -> Rows:
        """Several sequences of unchanged rows, one after the other."""
        parts: list[Part] = []
        numbers = [np.empty(0, np.int64)]
        before = 0
        for rows in several:
            assert not rows._changes
            numbers.append(rows._numbers + before)
            parts += rows._parts
            before += int(rows._ends[-1]) if len(rows._parts) else 0
        return cls(parts, np.concatenate(numbers))

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Row | Rows:
        if isinstance(index, slice):
            return self.take(index)
        return self._read(self._numbers[[index]])[0]

    def __iter__(self) -> Iterator[Row]:
        for chunk in self.chunks():
            yield from chunk

    def chunks(self, size: int = CHUNK) -> Iterator[list[Row]]:
        """The rows, at most `size` of them at a time."""
        for start in range(0, len(self), size):
            yield self._read(self._numbers[start : start + size])

    def take(self, index: slice | Sequence[int]) -> Rows:
        """The rows of a slice or with the given numbers."""
        return Rows(self._parts, self._numbers[index], self._changes)

    def changed(self, change: Callable[[Row], Row]) -> Rows:
        """The rows, each of which goes through a function when it is read."""
        return Rows(self._parts, self._numbers, (*self._changes, change))

    def columns(self) -> list[str]:
        """The columns of the rows, in the order of first use."""
        return list(dict.fromkeys(name for row in self for name in row))

    def _read(self, numbers: Numbers) -> list[Row]:
        rows: list[Row] = []
        where = np.searchsorted(self._ends, numbers, side="right")
        for run in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(where)) + 1):
            part = int(where[run[0]])
            before = self._ends[part - 1] if part else 0
            rows += self._parts[part].rows(numbers[run] - before)
        for change in self._changes:
            rows = [change(row) for row in rows]
        return rows


class RepeatedKey(ValueError):
    """A JSON object has a key twice, so which of the values counts is unknown."""


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        json.JSONDecodeError: it is none.
        RepeatedKey: an object has a key twice.
    """
    return _DECODER.decode(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKey(f"the key {next(name for name in row if names.count(name) > 1)!r} is there twice")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_object)  # made once: `json.loads` makes one for every call with a hook


def as_object(row: Any, path: Path, position: str) -> Row:
    """A row, checked to be an object.

    Raises:
        DataError: it is none.
    """
    if not isinstance(row, dict):
        raise DataError(f"{path}: {position} is a {type(row).__name__}; each row must be a JSON object of columns")
    return row


def not_utf8(path: Path, error: UnicodeDecodeError, start: int = 0) -> DataError:
    """The error for bytes that are no text; `start` is where they begin in the file."""
    return DataError(
        f"{path}: is not UTF-8: byte {error.object[error.start]:#04x} at byte offset {start + error.start}; "
        "convert it, for example with iconv -t UTF-8"
    )
