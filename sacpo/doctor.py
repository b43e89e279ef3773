"""`sacpo doctor`: what would keep a sweep from running on this machine, and the way out."""

from __future__ import annotations

import argparse
import sys

from sacpo.command_line import command, parse
from sacpo.runs.doctor_run import PROBLEM, findings


@command
def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 no problem, 1 a problem."""
    parse(argparse.ArgumentParser(prog="sacpo doctor", description=__doc__), argv)
    has_problem = False
    for finding in findings():
        print(f"{finding.level:7}  {finding.text}", flush=True)
        has_problem |= finding.level == PROBLEM
    return int(has_problem)


if __name__ == "__main__":
    sys.exit(main())
