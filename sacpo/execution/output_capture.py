"""Keeps the output of libraries off the terminal: settings that silence them, and a file for the rest."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

QUIET_LIBRARIES = {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
"""Environment variables: no telemetry, no tokenizer threads (they fork badly), no progress bars."""

_OF_NO_CONCERN = {
    "DeepSpeed": "Setting accelerator to CPU",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}
"""Warnings that every import on a CPU gives, whether or not the library is used: logger, beginning of the message."""


def _concerns_a_sweep(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_OF_NO_CONCERN[record.name])


def quiet_libraries() -> None:
    """Set `QUIET_LIBRARIES` in this process, before the libraries are imported; what the user has set stays.

    Warnings that say nothing of the sweep are left out.
    """
    for name in _OF_NO_CONCERN:
        logging.getLogger(name).addFilter(_concerns_a_sweep)
    for name, value in QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of its own settings' new names


def skip_libraries(names: Iterable[str]) -> None:
    """Make these libraries look as if they were not installed, in a process that needs none of them.

    peft, TRL and DeepSpeed import optional libraries wherever they are installed: bitsandbytes, W&B and MLflow are a
    third of all that a training process imports.

    Args:
        names: Names of top-level modules. One that is imported already stays.
    """
    for name in names:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's own mark of a module without a spec


@contextlib.contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append this process's standard output and error to a file meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
