"""Reads the rows of a source: files, globs, folders of shards, `datasets` folders and hub data sets."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sacpo.data.rows import SUFFIXES, read_file
from sacpo.data.stored_rows import Row, Rows, TablePart
from sacpo.errors import DataError
from sacpo.spaces.sources import SPLIT, RowSource

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
    data_files: str | list[str] | None = None,
) -> Rows:
    """All rows of a source.

    Args:
        path: JSONL, JSON, CSV or Parquet file (each may end in .gz), list of files, glob, folder of such files, folder
            of `Dataset.save_to_disk`, or hub id.
        split: Split or slice of one, such as `train[:10%]`; a file has only `train`.
        revision: Commit of the hub repository; None for local data.
        name: Configuration of a hub data set or of a local folder that describes several.
        data_dir: Folder inside the hub data set or the local folder.
        data_files: Files inside it, as paths or globs; they are the split `train`.

    Returns:
        The rows, each a dict by column; at least one. They are read when they are used.

    Raises:
        DataError: the rows cannot be read, there are none, or a setting would have no effect.
    """
    is_list = isinstance(path, list)
    local = Path(path[0] if isinstance(path, list) else path)
    is_glob = is_list or (not local.exists() and revision is None and glob.has_magic(str(path)))
    if (local.exists() or is_glob) and revision is not None:
        raise DataError(f"{path}: is local, so revision {revision!r} would have no effect; leave `revision` out")
    is_folder = local.is_dir() and not is_list
    if (is_glob or local.is_file()) and (name or data_dir or data_files):
        raise DataError(
            f"{path}: is a file, so `name`, `data_dir` and `data_files` would have no effect; leave them out"
        )
    if is_folder:
        rows = _read_folder(local, split, name, data_dir, data_files)
    elif is_glob or local.exists():
        rows = _sliced({"train": _rows_of(matching_files(path))}, split, str(path))
    elif local.is_absolute() or local.name.removesuffix(".gz").endswith(SUFFIXES) or revision is None:
        raise DataError(f"{path}: there is no such file; correct the path, or give a hub id with its `revision`")
    else:
        rows = _load_dataset(str(path), split, revision, name, data_dir, data_files)
    if not rows:
        raise DataError(f"{path}: has no rows; check that the file is complete and that `split` is not empty")
    return rows


def rows_of_source(source: RowSource) -> Rows:
    """All rows of a source of a space; see `read_rows`."""
    return read_rows(
        source.path,
        split=source.split,
        revision=source.revision,
        name=source.name,
        data_dir=source.data_dir,
        data_files=source.data_files,
    )


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


def _rows_of(files: list[Path]) -> Rows:
    return Rows([read_file(file) for file in files])


def _sliced(splits: dict[str, Rows], split: str, source: str) -> Rows:
    """The rows of a split, a slice of it, or several with `+` between."""
    chosen: list[Rows] = []
    for part in split.split("+"):
        match = SPLIT.match(part.strip())
        base = match[1] if match else part
        if match is None or base not in splits:
            kind = "a file has no split" if list(splits) == ["train"] else "has no split"
            raise DataError(f"{source}: {kind} {base!r}; it has {', '.join(splits)}; set `split` to one of them")
        rows = splits[base]
        chosen.append(rows[_bound(match[2], len(rows)) : _bound(match[3], len(rows))])
    return Rows.joined(chosen)


def _bound(text: str | None, rows: int) -> int | None:
    """A bound of a slice in rows. Percents round to the nearest row, as in `datasets`."""
    if text is None:
        return None
    return round(int(text[:-1]) * rows / 100) if text.endswith("%") else int(text)


def _read_folder(
    folder: Path, split: str, name: str | None, data_dir: str | None, data_files: str | list[str] | None
) -> Rows:
    if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        if name or data_dir or data_files:
            raise DataError(
                f"{folder}: was written by `save_to_disk`, so `name`, `data_dir` and `data_files` would have no "
                "effect; leave them out"
            )
        return _saved_to_disk(folder, split)
    inner = folder / (data_dir or "")
    if not inner.is_dir():
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise DataError(f"{folder}: has no folder {data_dir!r}; it has {', '.join(inside) or 'none'}; set `data_dir`")
    if data_files and not name:
        patterns = [data_files] if isinstance(data_files, str) else data_files
        return _sliced({"train": _rows_of(matching_files([str(inner / p) for p in patterns]))}, split, str(inner))
    card = folder / "README.md"
    if name or (data_dir is None and card.is_file() and "\nconfigs:" in card.read_text(errors="replace")):
        return _load_dataset(str(folder), split, None, name, data_dir, data_files)
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
    rows = {base: _rows_of(paths if base in needed else []) for base, paths in by_split.items()}
    return _sliced(rows, split, str(inner))


def _saved_to_disk(folder: Path, split: str) -> Rows:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder}: is not a folder of `Dataset.save_to_disk` ({error}); give the path of a file in it"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        return _sliced({name: _rows_of_dataset(part) for name, part in loaded.items()}, split, str(folder))
    if split.split("[")[0] != "train":
        raise DataError(
            f"{folder}: is one data set without splits, so split {split!r} would have no effect; leave `split` out"
        )
    return _sliced({"train": _rows_of_dataset(loaded)}, split, str(folder))


def _rows_of_dataset(dataset: Any) -> Rows:
    """The rows of a `datasets.Dataset`, whose table stays on the disk."""
    return Rows([TablePart(dataset.data.table)])  # what was just loaded has no indices beside its table


def _load_dataset(
    path: str,
    split: str,
    revision: str | None,
    name: str | None,
    data_dir: str | None,
    data_files: str | list[str] | None,
) -> Rows:
    import datasets

    try:
        loaded = datasets.load_dataset(
            path, name, data_dir=data_dir, data_files=data_files, revision=revision, split=split
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        place = (
            f"is not a local file, and the hub has no split {split!r} of revision {revision!r}"
            if revision
            else (f"split {split!r} of configuration {name!r} cannot be read")
        )
        raise DataError(
            f"{path}: {place}: {error}; correct `path`, `revision`, `name`, `data_dir`, `data_files` or "
            "`split`, or download the data and give the path of a file"
        ) from None
    return _rows_of_dataset(loaded)


def select(rows: Rows, where: Mapping[str, str | int | bool], source: str) -> Rows:
    """The rows that have the given values. Values are compared as texts: a CSV file has no others.

    Args:
        rows: Rows of `read_rows`.
        where: The file's column to the required value.
        source: Name of the source for errors.

    Raises:
        DataError: a column is unknown, or no row has the values.
    """
    for column, value in where.items():
        texts = [_as_text(row[column]) if column in row else None for row in rows]
        if not any(text is not None for text in texts):
            known = ", ".join(rows.columns())
            raise DataError(f"{source}: where: the file has no column {column!r}; it has {known}")
        kept = [number for number, text in enumerate(texts) if text == _as_text(value)]
        if not kept:
            values = sorted({text for text in texts if text is not None})
            shown = ", ".join(values[:10]) + (", ..." if len(values) > 10 else "")
            raise DataError(f"{source}: where: no row has {value!r} in {column}; its values are {shown}")
        rows = rows.take(kept)
    return rows


def _as_text(value: Any) -> str:
    return str(value).casefold() if isinstance(value, bool) else str(value)


def rename(rows: Rows, columns: dict[str, str], allowed: Iterable[str], source: str, inner: str | None = None) -> Rows:
    """Rows with the columns that a format wants.

    Args:
        rows: Rows of `read_rows`.
        columns: The format's column to the file's column.
        allowed: Columns that the format reads.
        source: Name of the source for errors.
        inner: Column that holds lists of objects, whose keys are renamed too; None if there is none.

    Returns:
        Rows that are renamed when they are used; other columns stay.

    Raises:
        DataError: a named column is not one of the format's, or the file has no such column.
    """
    if not columns:
        return rows
    allowed, known = list(allowed), rows.columns()
    nested = {k for row in rows for item in _items(row, columns.get(inner, inner)) for k in item} if inner else set()
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
    outer = {target: column for target, column in columns.items() if column in known}
    keys = {target: column for target, column in columns.items() if column in nested}

    def renamed(row: Row) -> Row:
        new = _renamed(row, outer)
        if inner and isinstance(new.get(inner), list):
            new[inner] = [_renamed(item, keys) if isinstance(item, dict) else item for item in new[inner]]
        return new

    return rows.changed(renamed)


def _items(row: Row, column: str) -> list[Row]:
    value = row.get(column)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    kept = {name: value for name, value in row.items() if name not in columns}
    return kept | {target: row[column] for target, column in columns.items() if column in row}
