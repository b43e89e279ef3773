"""The command line of all commands: their arguments, their errors, and completion in the shell by argcomplete."""

from __future__ import annotations

import argparse
import csv
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sacpo.errors import SacpoError

_START = "_ARGCOMPLETE"
"""Variable that argcomplete's shell functions set: the word of the line where the command starts, from 1."""


def is_completing() -> bool:
    """Whether the shell asks for completions of a line."""
    return _START in os.environ


def command(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Make a function a command: an error of its input and an interruption are each one line and an exit status.

    Exit status: that of `main`; 2 for an error; 130 if Ctrl-C interrupted it, as shells have it.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except SacpoError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted; what had ended before is kept: give the same command again", file=sys.stderr)
            return 130

    return run


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command; while the shell completes a line, the completions instead, and the process ends."""
    if is_completing():
        import argcomplete

        argcomplete.autocomplete(parser)
    return parser.parse_args(argv)


def command_to_complete(commands: Sequence[str]) -> str | None:
    """The command whose arguments the shell completes, which then reads them from its own place in the line.

    Returns:
        None while the command itself is being typed.
    """
    typed = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode()
    words = typed.split()
    if len(words) < 2 or words[1] not in commands or typed.endswith(words[1]):
        return None
    os.environ[_START] = "2"
    return words[1]


def trial_labels(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Completions of a trial: the labels in `trials.csv` of the results folder; none where it cannot be read."""
    try:
        with (Path(parsed_args.results) / "trials.csv").open(newline="") as file:
            return [row["label"] for row in csv.DictReader(file)]
    except (OSError, KeyError):
        return []
