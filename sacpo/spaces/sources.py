"""Settings that every source of rows has: which files or data set, and which part of it."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from sacpo.spaces.base import Fraction, InputPath, Strict

SPLIT = re.compile(r"^(\w[\w.-]*?)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?$")
"""A split, or a slice of it by rows or percent, as `datasets` writes them: name, start, end."""

_FORMS = "write for example train, train[:1000] or test[10%:20%], or several with a plus sign between"


class RowSource(Strict):
    """Rows from files, a folder or the hub. Everything but the place of the input counts towards a step's id."""

    synthetic: ClassVar[bool] = False
    not_hashed: ClassVar[frozenset[str]] = frozenset({"path", "revision"})

    path: Annotated[str | list[str], InputPath(hub=True, several=True)] = Field(
        description="JSONL, JSON, CSV or Parquet file (each may end in .gz), a list of files, a glob such as "
        "shards/*.parquet, a folder of such files, or a `datasets` folder, relative to the space file; or hub id"
    )
    revision: str | None = Field(None, description="commit of the hub repository; required for a hub id")
    name: str | None = Field(None, description="configuration of a data set that has several; null means its default")
    data_dir: str | None = Field(
        None, description="folder inside the data set or the local folder, such as harmless-base; null means all of it"
    )
    data_files: str | list[str] | None = Field(
        None,
        description="files inside the data set or the local folder, such as en/*.jsonl, or a list of them; null means "
        "those that the data set or the folder has for `split`",
    )
    split: str = Field(
        "train", description="split, or a slice of it by rows or percent, such as train[:10%]; default train"
    )
    where: dict[str, str | int | bool] = Field(
        default_factory=dict,
        description="the file's own column to the value that a row must have in it, such as {label: safe}; other rows "
        "are not read; the default is all rows",
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="column that the format wants to the file's own column, such as {prompt: question, chosen: good}; "
        "the default is none",
    )

    @field_validator("path")
    @classmethod
    def _has_a_file(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("is empty; give at least one file")
        return value

    @field_validator("split")
    @classmethod
    def _is_a_split(cls, value: str) -> str:
        for part in value.split("+"):
            match = SPLIT.match(part.strip())
            if match is None:
                raise ValueError(f"is no split; {_FORMS}")
            if any(bound and bound.endswith("%") and abs(int(bound[:-1])) > 100 for bound in match.groups()[1:]):
                raise ValueError("has a bound beyond 100%; give percents from 0 to 100")
        return value


class SyntheticDemonstrations(Strict):
    """Prompt and response pairs drawn from the synthetic world's human distribution."""

    synthetic: ClassVar[bool] = True

    kind: Literal["synthetic"] = Field(description="demonstrations of the synthetic world")
    rows: int = Field(8192, ge=1, description="demonstrations to draw; default 8192")
    seed: int = Field(0, ge=0, description="seed of the draw; default 0")


class SyntheticPreferences(Strict):
    """Pairs sampled from the SFT policy and labelled by Bradley-Terry on the gold reward and the gold safety."""

    synthetic: ClassVar[bool] = True

    kind: Literal["synthetic"] = Field(description="preferences of the synthetic world, sampled from the SFT policy")
    rows: int = Field(16384, ge=1, description="pairs to draw; default 16384")
    garbled_fraction: Fraction = Field(
        0.03, description="fraction of pairs in which one response is garbled (a sentence out of place); default 0.03"
    )
    seed: int = Field(0, ge=0, description="seed of samples and labels; default 0")
