"""Names of the files that steps leave for each other, and readers that several packages need. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sacpo.synthetic.world import Array

PAIRS = "preferences.parquet"
EXAMPLES = "examples.parquet"
HELD_OUT = "held_out.parquet"
RESPONSES = "responses.parquet"
VERDICTS = "verdicts.parquet"
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
