"""`sacpo diff RESULTS1 RESULTS2`: compares two sweeps trial by trial, with paired intervals."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sacpo.command_line import command, parse


@command
def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 compared, 2 not possible."""
    parser = argparse.ArgumentParser(prog="sacpo diff", description=__doc__)
    parser.add_argument("first", help="a results folder, a path or a bucket's URI")
    parser.add_argument("second", help="another one")
    parser.add_argument("--csv", type=Path, help="write the table to this file too")
    arguments = parse(parser, argv)
    from sacpo.reporting.difference import difference_text
    from sacpo.results.kept_plan import read_kept_plan
    from sacpo.results.load import load_folder
    from sacpo.results.sweep_difference import difference
    from sacpo.store.results_location import ResultsLocation

    first, second = (ResultsLocation(results).fetch() for results in (arguments.first, arguments.second))
    compared = difference(load_folder(first), load_folder(second))
    print(difference_text(compared, (read_kept_plan(first), read_kept_plan(second))))
    if arguments.csv is not None:
        compared.trials.to_csv(arguments.csv, index=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
