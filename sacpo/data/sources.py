"""Reads the rows of a source: files, globs, folders of shards, `datasets` folders and hub data sets."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sacpo.data.rows import SUFFIXES, read_file
from sacpo.errors import DataError
from sacpo.spaces.sources import SPLIT

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
_SPLIT_WORD = re.compile(rf"(?:^|[^a-z0-9])({'|'.join(_SPLITS)})(?:[^a-z0-9]|[0-9]|$)")
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}


def read_rows(
    path: str | list[str],
    *,
    split: str = "train",
    revision: str | None = None,
    name: str | None = None,
    data_dir: str | None = None,
) -> list[dict[str, Any]]:
    """Read all rows of a source.

    Args:
        path: JSONL, JSON, CSV or Parquet file (each may end in .gz), list of files, glob, folder of such files, folder
            of `Dataset.save_to_disk`, or hub id.
        split: Split or slice of one, such as `train[:10%]`; a file has only `train`.
        revision: Commit of the hub repository; None for local data.
        name: Configuration of a hub data set or of a local folder that describes several.
        data_dir: Folder inside the hub data set or the local folder.

    Returns:
        The rows, each a dict by column; at least one.

    Raises:
        DataError: the rows cannot be read, there are none, or a setting would have no effect.
    """
    is_list = isinstance(path, list)
    local = Path(path[0] if isinstance(path, list) else path)
    is_glob = is_list or (not local.exists() and revision is None and glob.has_magic(str(path)))
    if (local.exists() or is_glob) and revision is not None:
        raise DataError(f"{path}: is local, so revision {revision!r} would have no effect; leave `revision` out")
    is_folder = local.is_dir() and not is_list
    if (is_glob or local.is_file()) and (name or data_dir):
        raise DataError(f"{path}: is a file, so `name` and `data_dir` would have no effect; leave them out")
    if is_folder:
        rows = _read_folder(local, split, name, data_dir)
    elif is_glob or local.exists():
        rows = _sliced({"train": [row for file in matching_files(path) for row in read_file(file)]}, split, str(path))
    elif local.is_absolute() or local.name.removesuffix(".gz").endswith(SUFFIXES) or revision is None:
        raise DataError(f"{path}: there is no such file; correct the path, or give a hub id with its `revision`")
    else:
        rows = _load_dataset(str(path), split, revision, name, data_dir)
    if not rows:
        raise DataError(f"{path}: has no rows; check that the file is complete and that `split` is not empty")
    return rows


def matching_files(path: str | list[str]) -> list[Path]:
    """The files of a path, a glob or a list of both, in the order in which they are read.

    Raises:
        DataError: a path or glob matches no file.
    """
    files: dict[Path, None] = {}
    for pattern in [path] if isinstance(path, str) else path:
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        matching = [Path(match) for match in matches if Path(match).is_file()]
        if not matching:
            raise DataError(f"{pattern}: matches no file; correct the path")
        files |= dict.fromkeys(matching)
    return list(files)


def _sliced(splits: dict[str, list[dict[str, Any]]], split: str, source: str) -> list[dict[str, Any]]:
    """The rows of a split, a slice of it, or several with `+` between."""
    chosen: list[dict[str, Any]] = []
    for part in split.split("+"):
        match = SPLIT.match(part.strip())
        base = match[1] if match else part
        if match is None or base not in splits:
            kind = "a file has no split" if list(splits) == ["train"] else "has no split"
            raise DataError(f"{source}: {kind} {base!r}; it has {', '.join(splits)}; set `split` to one of them")
        rows = splits[base]
        chosen += rows[_bound(match[2], len(rows)) : _bound(match[3], len(rows))]
    return chosen


def _bound(text: str | None, rows: int) -> int | None:
    """A bound of a slice in rows. Percents round to the nearest row, as in `datasets`."""
    if text is None:
        return None
    return round(int(text[:-1]) * rows / 100) if text.endswith("%") else int(text)


def _read_folder(folder: Path, split: str, name: str | None, data_dir: str | None) -> list[dict[str, Any]]:
    if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        if name or data_dir:
            raise DataError(
                f"{folder}: was written by `save_to_disk`, so `name` and `data_dir` would have no effect; "
                "leave them out"
            )
        return _saved_to_disk(folder, split)
    inner = folder / (data_dir or "")
    if not inner.is_dir():
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise DataError(f"{folder}: has no folder {data_dir!r}; it has {', '.join(inside) or 'none'}; set `data_dir`")
    card = folder / "README.md"
    if name or (data_dir is None and card.is_file() and "\nconfigs:" in card.read_text(errors="replace")):
        return _load_dataset(str(folder), split, None, name, data_dir)
    files = sorted(
        file
        for file in inner.rglob("*")
        if file.is_file()
        and file.name.removesuffix(".gz").endswith(SUFFIXES)
        and file.name not in _DESCRIPTIONS
        and not any(part.startswith(".") for part in file.relative_to(inner).parts)
    )
    if not files:
        raise DataError(f"{inner}: has no {', '.join(SUFFIXES)} file and is not a folder of `Dataset.save_to_disk`")
    by_split: dict[str, list[Path]] = {}
    for file in files:
        word = _SPLIT_WORD.search(str(file.relative_to(inner)).lower())
        if word:
            by_split.setdefault(_SPLITS[word[1]], []).append(file)
    by_split = by_split or {"train": files}
    needed = {part.split("[")[0].strip() for part in split.split("+")}
    rows = {
        base: [row for file in paths for row in read_file(file)] if base in needed else []
        for base, paths in by_split.items()
    }
    return _sliced(rows, split, str(inner))


def _saved_to_disk(folder: Path, split: str) -> list[dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: is not a folder of `Dataset.save_to_disk` ({error}); give the path of a file in it"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        needed = {part.split("[")[0].strip() for part in split.split("+")}
        return _sliced({k: part.to_list() if k in needed else [] for k, part in loaded.items()}, split, str(folder))
    if split.split("[")[0] != "train":
        raise DataError(
            f"{folder}: is one data set without splits, so split {split!r} would have no effect; leave `split` out"
        )
    return _sliced({"train": loaded.to_list()}, split, str(folder))


def _load_dataset(
    path: str, split: str, revision: str | None, name: str | None, data_dir: str | None
) -> list[dict[str, Any]]:
    import datasets

    try:
        rows: list[dict[str, Any]] = datasets.load_dataset(
            path, name, data_dir=data_dir, revision=revision, split=split
        ).to_list()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        place = (
            f"is not a local file, and the hub has no split {split!r} of revision {revision!r}"
            if revision
            else (f"split {split!r} of configuration {name!r} cannot be read")
        )
        raise DataError(
            f"{path}: {place}: {error}; correct `path`, `revision`, `name`, `data_dir` or `split`, or download the "
            "data and give the path of a file"
        ) from None
    return rows


def select(rows: list[dict[str, Any]], where: Mapping[str, str | int | bool], source: str) -> list[dict[str, Any]]:
    """The rows that have the wanted values. Values are compared as texts: a CSV file has no others.

    Args:
        rows: Rows of `read_rows`.
        where: The file's column to the wanted value.
        source: Name of the source for errors.

    Raises:
        DataError: a column is unknown, or no row has the values.
    """
    for column, value in where.items():
        known = columns_of(rows)
        if column not in known:
            raise DataError(f"{source}: where: the file has no column {column!r}; it has {', '.join(known)}")
        kept = [row for row in rows if _as_text(row.get(column)) == _as_text(value)]
        if not kept:
            values = sorted({_as_text(row.get(column)) for row in rows})
            shown = ", ".join(values[:10]) + (", ..." if len(values) > 10 else "")
            raise DataError(f"{source}: where: no row has {value!r} in {column}; its values are {shown}")
        rows = kept
    return rows


def _as_text(value: Any) -> str:
    return str(value).casefold() if isinstance(value, bool) else str(value)


def columns_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The columns of rows, in the order of first use."""
    return list(dict.fromkeys(name for row in rows for name in row))


def rename(
    rows: list[dict[str, Any]], columns: dict[str, str], allowed: Iterable[str], source: str, inner: str | None = None
) -> list[dict[str, Any]]:
    """Rows with the columns that a format wants.

    Args:
        rows: Rows of `read_rows`.
        columns: The format's column to the file's column.
        allowed: Columns that the format reads.
        source: Name of the source for errors.
        inner: Column that holds lists of objects, whose keys are renamed too; None if there is none.

    Returns:
        New rows; other columns stay.

    Raises:
        DataError: a named column is not one of the format's, or the file has no such column.
    """
    if not columns:
        return rows
    allowed, known = list(allowed), columns_of(rows)
    nested = {k for row in rows for item in _items(row, columns.get(inner or "", inner)) for k in item}
    for target, column in columns.items():
        if target not in allowed:
            raise DataError(
                f"{source}: columns: {target!r} is no column of the format, which reads {', '.join(allowed)}; the file "
                f"has {', '.join(known)}"
            )
        if column not in known and column not in nested:
            raise DataError(
                f"{source}: columns: the file has no column {column!r} for {target}; it has {', '.join(known)}"
            )
    renamed = []
    for row in rows:
        new = _renamed(row, {t: c for t, c in columns.items() if c in known})
        if inner and isinstance(new.get(inner), list):
            keys = {t: c for t, c in columns.items() if c in nested}
            new[inner] = [_renamed(item, keys) if isinstance(item, dict) else item for item in new[inner]]
        renamed.append(new)
    return renamed


def _items(row: dict[str, Any], column: str | None) -> list[dict[str, Any]]:
    value = row.get(column) if column else None
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _renamed(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    kept = {name: value for name, value in row.items() if name not in columns}
    return kept | {target: row[column] for target, column in columns.items() if column in row}
