"""`sacpo judge RESULTS --judge FILE`: judges the stored answers of a sweep by a further judge; generates nothing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sacpo.errors import SacpoError
from sacpo.spaces.loading import load_judge
from sacpo.store.results_location import ResultsLocation


def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 all answers were judged, 1 some judge steps failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="sacpo judge", description=__doc__)
    parser.add_argument("results", help="the results folder of a sweep, a path or an s3:// URI")
    parser.add_argument(
        "--judge", type=Path, required=True, help="YAML file with the judge's settings (kind: llm, ...)"
    )
    parser.add_argument("--name", help="name of the judge in the panel (default: the file's name)")
    parser.add_argument("--criterion", action="append", help="judge this criterion only; can be given several times")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the judge")
    parser.add_argument("--skip-canaries", action="store_true", help="do not try the judge on canned pairs first")
    arguments = parser.parse_args(argv)
    try:
        settings = load_judge(arguments.judge, arguments.set)
        from sacpo.runs.judge_run import AddedJudge, judge_again

        judge = AddedJudge(
            name=arguments.name or arguments.judge.stem,
            settings=settings,
            source=str(arguments.judge),
            criteria=arguments.criterion,
        )
        return judge_again(
            ResultsLocation(arguments.results),
            judge,
            command=("sacpo", "judge", *(sys.argv[1:] if argv is None else argv)),
            canaries=not arguments.skip_canaries,
        )
    except SacpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
