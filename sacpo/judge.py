"""`sacpo judge RESULTS --judge FILE`: judges the stored answers of a sweep by a further judge; generates nothing.

`--import FILE` takes the verdicts of AlpacaEval's annotations.json as a further judge. `--export-for-labels N` writes
pairs of answers for people to label, and `--labels FILE` reads them back.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sacpo.command_line import command, parse
from sacpo.spaces.evaluation import AnnotationsJudge, JudgeSettings
from sacpo.spaces.loading import load_judge
from sacpo.store.results_location import ResultsLocation


@command
def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 all answers were judged, 1 some judge steps failed, 2 bad input."""
    parser = argparse.ArgumentParser(prog="sacpo judge", description=__doc__)
    parser.add_argument("results", help="the results folder of a sweep, a path or a bucket's URI")
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--judge", type=Path, help="YAML file with the judge's settings (kind: llm, ...)")
    work.add_argument(
        "--import", dest="annotations", type=Path, help="AlpacaEval's annotations.json, whose verdicts become a judge"
    )
    work.add_argument(
        "--export-for-labels", type=int, metavar="N", help="write N pairs of answers to a CSV file for human labels"
    )
    work.add_argument("--labels", type=Path, metavar="FILE", help="read the labels of such a file back")
    parser.add_argument(
        "--output", type=Path, help="file of --export-for-labels (default: to_label.csv in the current folder)"
    )
    parser.add_argument("--name", help="name of the judge in the panel (default: the file's name)")
    parser.add_argument("--criterion", action="append", help="judge this criterion only; can be given several times")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of the judge")
    parser.add_argument("--skip-canaries", action="store_true", help="do not try the judge on canned pairs first")
    arguments = parse(parser, argv)
    _check_combination(parser, arguments)
    location = ResultsLocation(arguments.results)
    if arguments.labels is not None or arguments.export_for_labels is not None:
        from sacpo.runs.label_run import add_labels, export_for_labels

        if arguments.labels is not None:
            return add_labels(location, arguments.labels)
        return export_for_labels(location, arguments.export_for_labels, arguments.output or Path("to_label.csv"))
    file = arguments.judge or arguments.annotations
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


def _check_combination(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse options that the chosen work does not have."""
    is_judge = arguments.judge is not None or arguments.annotations is not None
    if not is_judge and (arguments.name or arguments.criterion or arguments.set or arguments.skip_canaries):
        parser.error("--name, --criterion, --set and --skip-canaries go with --judge or --import")
    if arguments.annotations and arguments.set:
        parser.error("--set changes a setting of --judge FILE; --import has none")
    if arguments.output is not None and arguments.export_for_labels is None:
        parser.error("--output goes with --export-for-labels")
    if arguments.export_for_labels is not None and arguments.export_for_labels < 1:
        parser.error(f"--export-for-labels {arguments.export_for_labels}: give 1 or more")


if __name__ == "__main__":
    sys.exit(main())
