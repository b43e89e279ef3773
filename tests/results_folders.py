"""Helpers for tests that change or inspect the results folder of a finished sweep."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from sacpo import judge
from sacpo.results import load
from tests.commands import Answer, call

NOISY = {"kind": "noisy", "error": 0.2}
MERGE = "p-sacpo q=0.5 (dpo:helpfulness@2>dpo:harmlessness@2)"
LAST_STAGE = r"(reference for train|train|generate \w+|judge \w+|probabilities) dpo:helpfulness@2>dpo:harmlessness@2"
"""Labels (a regular expression) of the last stage of the small space, its reference and its policy's evaluation."""


def copy_store(results: Path, store: Path, without: str) -> set[str]:
    """Copy the store of a results folder, for a sweep that has only a part of its steps to carry out.

    Args:
        results: The results folder.
        store: Where to copy its store.
        without: The steps with this label (a regular expression for all of it) are not copied.

    Returns:
        Ids of the steps that are not copied.
    """
    steps = load(results).steps
    missing = set(steps.loc[steps["label"].str.fullmatch(without), "step_id"])
    assert missing
    shutil.copytree(results / "store", store, ignore=shutil.ignore_patterns("sweeps", *missing))
    return missing


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def tables(folder: Path) -> dict[str, bytes]:
    """The content of the tables of a results folder."""
    return {path.name: path.read_bytes() for path in [*folder.glob("*.parquet"), folder / "trials.csv"]}


def judge_command(folder: str | Path, tmp_path: Path, name: str = "shaky", *more: str, **settings: Any) -> Answer:
    """Judge the stored answers by the noisy judge."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(NOISY | settings))
    return call(judge.main, str(folder), "--judge", str(path), *more)


def step_folders(folder: Path) -> list[Path]:
    """The step folders of the store of a results folder."""
    return list((folder / "store" / "steps").iterdir())


def drop_records(folder: Path, *prefixes: str) -> None:
    """Remove the records of all steps of these kinds from the store of a results folder."""
    for prefix in prefixes:
        for record in (folder / "store" / "steps").glob(f"{prefix}-*/record.json"):
            record.unlink()
