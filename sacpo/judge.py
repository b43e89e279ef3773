"""`sacpo judge RESULTS --judge FILE`: judges the stored answers of a sweep by a further judge; generates nothing.

`sacpo judge RESULTS --import FILE` takes the verdicts of AlpacaEval's annotations.json as a further judge.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sacpo.errors import SacpoError
from sacpo.spaces.evaluation import AnnotationsJudge, JudgeSettings
from sacpo.spaces.loading import load_judge
from sacpo.store.results_location import ResultsLocation


def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 all answers were judged, 1 some judge steps failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="sacpo judge", description=__doc__)
    parser.add_argument("results", help="the results folder of a sweep, a path or an s3:// URI")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--judge", type=Path, help="YAML file with the judge's settings (kind: llm, ...)")
    source.add_argument(
        "--import", dest="annotations", type=Path, help="AlpacaEval's annotations.json, whose verdicts become a judge"
    )
    parser.add_argument("--name", help="name of the judge in the panel (default: the file's name)")
    parser.add_argument("--criterion", action="append", help="judge this criterion only; can be given several times")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the judge")
    parser.add_argument("--skip-canaries", action="store_true", help="do not try the judge on canned pairs first")
    arguments = parser.parse_args(argv)
    if arguments.annotations and arguments.set:
        parser.error("--set changes a setting of --judge FILE; --import has none")
    file = arguments.judge or arguments.annotations
    try:
        settings: JudgeSettings
        if arguments.annotations:
            settings = AnnotationsJudge(kind="annotations", path=str(file.resolve()))
        else:
            settings = load_judge(file, arguments.set)
        from sacpo.runs.judge_run import AddedJudge, judge_again

        judge = AddedJudge(
            name=arguments.name or file.stem,
            settings=settings,
            source=str(file),
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
