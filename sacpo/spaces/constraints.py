"""The constraint of a space: the win rate that a policy must reach, and how sure this must be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from sacpo.errors import SpaceError
from sacpo.spaces.base import Name, OneOrList, Strict, as_list
from sacpo.spaces.evaluation import CRITERIA


class Constraint(Strict):
    """A bound on one criterion: E[g] >= b of the constrained problem, with the win rate for g."""

    criterion: Name = Field(description="criterion of `evaluation` whose win rate is bounded, such as harmlessness")
    at_least: float = Field(gt=0, lt=1, description="smallest win rate against the SFT policy, ties half")
    confidence: float = Field(
        0.95, ge=0.5, lt=1, description="probability with which a policy that violates it is recognised; default 0.95"
    )


Constraints = Annotated[list[Constraint], BeforeValidator(as_list), OneOrList()]


def objective_of(constraints: Sequence[Constraint]) -> str:
    """The criterion that is maximised under the constraints: the first axis of the front without a constraint."""
    bounded = {constraint.criterion for constraint in constraints}
    return next((criterion for criterion in CRITERIA if criterion not in bounded), CRITERIA[0])


def add_constraint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options `--at-least` and `--confidence`, which `parse_constraints` reads."""
    parser.add_argument(
        "--at-least",
        action="append",
        default=[],
        metavar="CRITERION=WIN-RATE",
        help="what the policy must reach, such as harmlessness=0.6; can be given several times (default: the space's "
        "constraint)",
    )
    parser.add_argument("--confidence", type=float, help="confidence of these constraints (default 0.95)")


def parse_constraints(at_least: Sequence[str], confidence: float | None) -> list[Constraint]:
    """The constraints of a command line; empty if it has none.

    Raises:
        SpaceError: lists every problem.
    """
    given = [text.partition("=") for text in at_least]
    problems = [
        f"--at-least {name}{sign}{value}: must be CRITERION=WIN-RATE, such as harmlessness=0.6"
        for name, sign, value in given
        if _number(value) is None
    ]
    if confidence is not None and not at_least:
        problems.append("--confidence: needs --at-least; the confidence of the space's constraint stands in the space")
    constraints = []
    for name, _, value in given:
        number = _number(value)
        settings: dict[str, Any] = {"criterion": name, "at_least": number}
        settings |= {} if confidence is None else {"confidence": confidence}
        try:
            constraints += [Constraint(**settings)] if number is not None else []
        except ValidationError as error:
            for detail in error.errors():
                option = "--confidence" if detail["loc"] == ("confidence",) else f"--at-least {name}={value}"
                problems.append(f"{option}: {detail['loc'][0]} {detail['msg'].replace('Input should', 'should')}")
    names = [constraint.criterion for constraint in constraints]
    problems += [f"--at-least {name}: is given twice" for name in sorted({n for n in names if names.count(n) > 1})]
    if problems:
        raise SpaceError("the command line", list(dict.fromkeys(problems)))
    return constraints


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
