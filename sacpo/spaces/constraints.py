"""The constraint of a space: the win rate that a policy must reach, and how sure this must be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator

from sacpo.errors import SpaceError
from sacpo.spaces.base import Name, OneOrList, Strict, as_list
from sacpo.spaces.evaluation import CRITERIA

MEAN_SCORE = " mean score"


class Constraint(Strict):
    """A bound on one criterion: E[g] >= b of the constrained problem, with the win rate or the judge's score for g."""

    criterion: Name = Field(description="criterion of `evaluation` that is bounded, such as harmlessness")
    measure: Literal["win_rate", "mean_score"] = Field(
        "win_rate",
        description="what is bounded: the win rate against the SFT policy, ties half (win_rate, default), or the mean "
        "of the scores that a reward model gives to the policy's answers (mean_score)",
    )
    at_least: float = Field(
        allow_inf_nan=False, description="smallest win rate, above 0 and below 1, or smallest mean score"
    )
    confidence: float = Field(
        0.95, ge=0.5, lt=1, description="probability with which a policy that violates it is recognised; default 0.95"
    )

    @field_validator("at_least")
    @classmethod
    def _in_range(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("measure") == "win_rate" and not 0 < value < 1:
            problem = "greater than 0" if value <= 0 else "less than 1"
            raise ValueError(f"must be {problem}, since it is a win rate; a score is bounded by measure: mean_score")
        return value

    @property
    def key(self) -> str:
        """The criterion, or what stands for its scores in the tables of a choice."""
        return self.criterion if self.measure == "win_rate" else f"{self.criterion}{MEAN_SCORE}"


Constraints = Annotated[list[Constraint], BeforeValidator(as_list), OneOrList()]


def objective_of(constraints: Sequence[Constraint]) -> str:
    """The criterion that is maximised under the constraints: the first axis of the front without a constraint."""
    bounded = {constraint.criterion for constraint in constraints}
    return next((criterion for criterion in CRITERIA if criterion not in bounded), CRITERIA[0])


def add_constraint_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `parse_constraints` reads."""
    parser.add_argument(
        "--at-least",
        action="append",
        default=[],
        metavar="CRITERION=WIN-RATE",
        help="what the policy must reach, such as harmlessness=0.6; can be given several times (default: the space's "
        "constraint)",
    )
    parser.add_argument(
        "--mean-score-at-least",
        action="append",
        default=[],
        metavar="CRITERION=SCORE",
        help="the same for the mean of the scores that a criterion's reward model gives to the policy's answers",
    )
    parser.add_argument("--confidence", type=float, help="confidence of these constraints (default 0.95)")


def parse_constraints(
    at_least: Sequence[str], confidence: float | None, mean_score_at_least: Sequence[str] = ()
) -> list[Constraint]:
    """The constraints of a command line; empty if it has none.

    Raises:
        SpaceError: lists every problem.
    """
    options = {"win_rate": ("--at-least", "WIN-RATE"), "mean_score": ("--mean-score-at-least", "SCORE")}
    given = [("win_rate", *text.partition("=")) for text in at_least]
    given += [("mean_score", *text.partition("=")) for text in mean_score_at_least]
    problems = [
        f"{options[measure][0]} {name}{sign}{value}: must be CRITERION={options[measure][1]}, such as harmlessness=0.6"
        for measure, name, sign, value in given
        if _number(value) is None
    ]
    if confidence is not None and not given:
        problems.append("--confidence: needs --at-least; the confidence of the space's constraint stands in the space")
    constraints = []
    for measure, name, _, value in given:
        number = _number(value)
        settings: dict[str, Any] = {"criterion": name, "measure": measure, "at_least": number}
        settings |= {} if confidence is None else {"confidence": confidence}
        try:
            constraints += [Constraint(**settings)] if number is not None else []
        except ValidationError as error:
            for detail in error.errors():
                is_bound = detail["loc"] != ("confidence",)
                option = f"{options[measure][0]} {name}={value}" if is_bound else "--confidence"
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
