"""Names of the files that steps leave for each other, and readers that several packages need. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sacpo.synthetic.world import Array

PAIRS = "preferences.parquet"
EXAMPLES = "examples.parquet"
HELD_OUT = "held_out.parquet"
RESPONSES = "responses.parquet"
VERDICTS = "verdicts.parquet"
RACE = "race.json"
REFERENCE = "reference.parquet"
LIKELIHOODS = "likelihoods.parquet"
PROBABILITIES = "probabilities.safetensors"
HISTORY = "history.json"
INSPECTION = "inspection.json"
PROMPT_END = "\N{DOUBLE VERTICAL LINE}"
"""In an inspection, stands between the prompt's tokens and the tokens that are trained on."""


def shard_name(name: str, shard: tuple[int, int]) -> str:
    """Name of a shard's part of a file; the name itself if there is only one shard."""
    index, count = shard
    return name if count == 1 else f"{index:04d}-{name}"


def read_probabilities(folder: Path) -> Array:
    """A policy's probability of every answer of the synthetic world, float64 of shape (prompts, answers)."""
    return np.asarray(load_file(folder / PROBABILITIES)["probabilities"], dtype=np.float64)


def read_stopped(folder: Path) -> dict[str, float]:
    """The policies that a race and those before it have stopped: id of the trial to its chance at that time."""
    stopped: dict[str, float] = json.loads((folder / RACE).read_text(encoding="utf-8"))["stopped"]
    return stopped
