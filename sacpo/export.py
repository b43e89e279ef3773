"""`sacpo export RESULTS TRIAL OUT`: writes a policy as a plain Hugging Face folder with a model card.

`sacpo export RESULTS --answers FORMAT --out OUT`: writes every policy's answers for another evaluation harness.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sacpo.command_line import command, parse, trial_labels
from sacpo.spaces.constraints import add_constraint_options, parse_constraints
from sacpo.store.results_location import ResultsLocation


@command
def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 exported, 2 not possible."""
    parser = argparse.ArgumentParser(prog="sacpo export", description=__doc__)
    parser.add_argument("results", help="the results folder of a sweep, a path or a bucket's URI")
    trial = parser.add_argument("trial", nargs="?", help="a trial's id or label, as in trials.csv")
    trial.completer = trial_labels  # type: ignore[attr-defined]  # argcomplete reads it
    parser.add_argument("out", type=Path, nargs="?", help="a folder that is new or empty")
    parser.add_argument(
        "--answers", choices=("alpaca_eval", "arena_hard", "inspect"), help="write all policies' answers in this format"
    )
    parser.add_argument("--out", dest="folder", type=Path, help="with --answers: a folder that is new or empty")
    add_constraint_options(parser)
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write a policy that was trained with LoRA as an adapter for peft, not merged into its base's weights",
    )
    parser.add_argument(
        "--push", metavar="REPO", help="upload the policy to this repository of the Hugging Face hub too (NAME/MODEL)"
    )
    arguments = parse(parser, argv)
    if arguments.answers:
        if arguments.push:
            parser.error("--push uploads one policy: give RESULTS, TRIAL and OUT, and leave --answers out")
        if arguments.trial or not arguments.folder:
            parser.error(
                "--answers exports all policies: give RESULTS, --answers FORMAT and --out FOLDER, and no trial"
            )
    elif not arguments.out or arguments.folder:
        parser.error("give RESULTS, TRIAL and OUT; or RESULTS, --answers FORMAT and --out FOLDER")
    from sacpo.runs.export_run import export_answers, export_policy, push

    if arguments.answers:
        files = export_answers(ResultsLocation(arguments.results), arguments.answers, arguments.folder)
        print(f"{len(files)} files in {arguments.folder}")
        return 0
    constraints = parse_constraints(arguments.at_least, arguments.confidence, arguments.mean_score_at_least)
    location = ResultsLocation(arguments.results)
    export_policy(location, arguments.trial, arguments.out, constraints, as_adapter=arguments.adapter)
    print(arguments.out)
    if arguments.push:
        print(push(arguments.out, arguments.push))
    return 0


if __name__ == "__main__":
    sys.exit(main())
