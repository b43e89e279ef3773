"""`sacpo extend RESULTS --set KEY=VALUE`: a changed space in a new results folder; only the difference is run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sacpo.command_line import command, parse
from sacpo.data.formats import source_hint
from sacpo.errors import SacpoError
from sacpo.results.kept_plan import find_kept
from sacpo.spaces.loading import load_space, parse_space
from sacpo.store.results_location import ResultsLocation


@command
def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 all trials are done, 1 some failed or the run was stopped, 2 bad input."""
    arguments = parse(_parser(), argv)
    location = ResultsLocation(arguments.results)
    kept = find_kept(location)
    if kept is None:
        raise SacpoError(f"{location.uri} is not a results folder; give the folder of a sweep")
    if arguments.space is None:
        space = parse_space(kept.plan.space.model_dump(mode="json"), arguments.set)
    else:
        space = load_space(arguments.space, arguments.set, source_hint=source_hint)
    from sacpo.runs.extend_run import extend

    extension = extend(kept, location, space, arguments.new_results)
    print(extension.describe(), flush=True)
    if arguments.dry_run:
        return 0
    words = ("sacpo", "extend", *(sys.argv[1:] if argv is None else argv))
    return extension.run(arguments.address, words, arguments.max_workers)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sacpo extend", description=__doc__)
    parser.add_argument("results", help="the results folder of a sweep, a path or a bucket's URI")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of its space")
    parser.add_argument("--space", type=Path, help="a changed space file, instead of the space of the results folder")
    parser.add_argument(
        "--results",
        dest="new_results",
        metavar="NEW",
        help="the new results folder (default: RESULTS-2, or the next number)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the differences and touch nothing")
    parser.add_argument("--address", default="local", help="as for `sacpo sweep`")
    parser.add_argument("--max-workers", type=int, default=0, metavar="WORKERS", help="as for `sacpo sweep`")
    return parser


if __name__ == "__main__":
    sys.exit(main())
