"""The console script `sacpo`: `sacpo COMMAND ...` is the same as `python -m sacpo.COMMAND ...`."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys

from sacpo import __version__
from sacpo.command_line import command_to_complete, is_completing, parse

COMMANDS = {
    "sweep": "run a space to its Pareto front, or continue; --status and --dry-run inform",
    "choose": "choose the policy that satisfies the constraint, with a certificate",
    "judge": "judge the stored answers of a sweep by a further judge",
    "report": "write tables, plot and page of a results folder again, from its store",
    "export": "write a policy as a Hugging Face folder with a model card",
    "extend": "run a changed space in a new results folder; only the difference is run",
    "diff": "compare two sweeps trial by trial",
    "doctor": "print what would keep a sweep from running on this machine",
    "store": "show what a store holds, remove what no sweep needs, verify digests",
}
"""Name of each command, which is also the name of its module, and its purpose."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; only its module is imported. Exit status: the command's, or 2 if there is no such command."""
    if is_completing():
        return _complete()
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    if arguments[:1] == ["--version"]:
        print(f"sacpo {__version__}")
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        similar = difflib.get_close_matches(arguments[0], COMMANDS, n=1) if arguments else []
        hint = f"; did you mean {similar[0]}?" if similar else ""
        problem = f"unknown command {arguments[0]!r}{hint}" if arguments else "a command is required"
        print(f"error: {problem}\n\n{_usage()}", file=sys.stderr)
        return 2
    return _run(arguments[0], arguments[1:])


def _run(command: str, arguments: list[str]) -> int:
    module = "store.__main__" if command == "store" else command
    status: int = importlib.import_module(f"sacpo.{module}").main(arguments)
    return status


def _complete() -> int:
    """Complete a command's name, or let the command complete its own arguments."""
    command = command_to_complete(list(COMMANDS))
    if command is not None:
        return _run(command, [])
    parser = argparse.ArgumentParser(prog="sacpo", usage=_usage())
    parser.add_argument("--version", action="store_true")
    parser.add_argument("command", choices=COMMANDS)
    parse(parser, [])
    return 2


def _usage() -> str:
    return "\n".join(
        [
            "usage: sacpo COMMAND ...",
            "",
            "Sweeps of SACPO that end in a Pareto front of helpfulness against harmlessness.",
            "",
            *(f"  {name:8} {text}" for name, text in COMMANDS.items()),
            "",
            "`sacpo COMMAND --help` lists the options of a command.",
            'Completion in bash or zsh: eval "$(register-python-argcomplete sacpo)"',
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
