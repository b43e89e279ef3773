"""`sacpo choose RESULTS`: chooses the policy that satisfies the constraint, with a certificate of how sure this is."""

from __future__ import annotations

import argparse
import sys

from sacpo.command_line import command, parse
from sacpo.spaces.constraints import add_constraint_options, parse_constraints
from sacpo.store.results_location import ResultsLocation


@command
def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 a policy is chosen, 1 none qualifies, 2 bad input."""
    parser = argparse.ArgumentParser(prog="sacpo choose", description=__doc__)
    parser.add_argument("results", help="the results folder of a sweep, a path or a bucket's URI")
    add_constraint_options(parser)
    arguments = parse(parser, argv)
    from sacpo.runs.choose_run import choose_policy

    constraints = parse_constraints(arguments.at_least, arguments.confidence, arguments.mean_score_at_least)
    text, status = choose_policy(ResultsLocation(arguments.results), arguments.results, constraints)
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
