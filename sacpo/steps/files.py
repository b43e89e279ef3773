"""Names of the files that steps leave for each other, and the readers that several rooms need. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sacpo.data.synthetic import Array

PAIRS = "preferences.parquet"
EXAMPLES = "examples.parquet"
HELD_OUT = "held_out.parquet"
RESPONSES = "responses.parquet"
VERDICTS = "verdicts.parquet"
PROBABILITIES = "probabilities.safetensors"
HISTORY = "history.json"


def read_probabilities(folder: Path) -> Array:
    """A policy's probability of every answer of the embedded world, float64 of shape (prompts, answers)."""
    return np.asarray(load_file(folder / PROBABILITIES)["probabilities"], dtype=np.float64)
