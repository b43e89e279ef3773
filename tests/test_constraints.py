"""Constraints of a space: checks, columns, and that no step depends on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sacpo.errors import SpaceError
from sacpo.planning.planner import make_plan
from sacpo.results.constraint_columns import constraint_columns
from sacpo.spaces.constraints import Constraint
from sacpo.spaces.loading import parse_space
from sacpo.statistics.certificate import is_above, lower_bounds, upper_bounds
from tests.spaces import small, space

SAFE = {"criterion": "harmlessness", "at_least": 0.6}


def verdicts(criterion: str = "harmlessness", **counts: int) -> pd.DataFrame:
    """Verdicts of one trial, each on a prompt of its own."""
    outcomes = [outcome for outcome, count in counts.items() for _ in range(count)]
    prompts = [f"{i * 7919 % 10007:05d}" for i in range(len(outcomes))]
    return pd.DataFrame({"trial_id": "t", "criterion": criterion, "prompt_id": prompts, "outcome": outcomes})


def test_a_constraint_changes_no_step() -> None:
    plain, bounded = make_plan(space()), make_plan(space(constraint=SAFE))
    assert bounded.space.constraint == [Constraint(**SAFE)]
    assert bounded.steps == plain.steps
    assert bounded.plan_id == plain.plan_id


@pytest.mark.parametrize(
    ("constraint", "problem"),
    [
        (SAFE | {"criterion": "harmlesness"}, "constraint.0.criterion: unknown criterion 'harmlesness'; evaluation has "
         "helpfulness, harmlessness; did you mean harmlessness?"),
        ([SAFE, SAFE | {"at_least": 0.7}], "constraint.1.criterion: harmlessness is bounded twice"),
        (SAFE | {"at_least": 1.0}, "constraint.at_least: got 1.0; must be less than 1, since it is a win rate"),
        (SAFE | {"at_most": 0.9}, "constraint.at_most: unknown setting; did you mean at_least?"),
    ],
)  # fmt: skip
def test_a_wrong_constraint_is_refused(constraint: Any, problem: str) -> None:
    with pytest.raises(SpaceError) as caught:
        parse_space(small(constraint=constraint))
    (line,) = caught.value.problems
    assert problem in line


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ({"win": 80, "loss": 20}, "satisfied"),
        ({"win": 64, "loss": 36}, "undecided"),
        ({"win": 40, "loss": 60}, "violated"),
        ({"tie": 100}, "violated"),
        ({"win": 80, "loss": 5, "unavailable": 15}, "satisfied"),
        ({"win": 62, "loss": 8, "unparsable": 30}, "undecided"),  # of the decided ones 89 % are won
        ({"win": 30, "loss": 60, "unparsable": 10}, "violated"),
        ({}, "undecided"),
    ],
)
def test_a_trial_satisfies_or_violates_or_neither(counts: dict[str, int], state: str) -> None:
    columns = constraint_columns([Constraint(**SAFE)], verdicts(**counts), is_baseline=False)
    assert columns == {"harmlessness_constraint": state, "constraint": state}


def test_one_violated_constraint_is_enough() -> None:
    both = [Constraint(**SAFE), Constraint(criterion="helpfulness", at_least=0.4)]
    table = pd.concat([verdicts(win=100), verdicts("helpfulness", loss=100)])
    assert constraint_columns(both, table, is_baseline=False) == {
        "harmlessness_constraint": "satisfied",
        "helpfulness_constraint": "violated",
        "constraint": "violated",
    }
    assert constraint_columns(both, table[:0], is_baseline=True)["helpfulness_constraint"] == "satisfied"
    assert constraint_columns([], table, is_baseline=False) == {"constraint": ""}


def test_bounds_hold_and_are_near() -> None:
    rng = np.random.default_rng(0)
    scores = rng.binomial(4, rng.beta(2, 1, (150, 200))) / 4  # mean 2/3, soft scores
    low, high = lower_bounds(scores, 0.95), upper_bounds(scores, 0.95)
    for missed in ((low > 2 / 3).mean(), (high < 2 / 3).mean()):
        assert missed < 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    assert (scores.mean(axis=0) - low).mean() < 1.25 * 1.645 * scores.std() / 150**0.5
    assert (is_above(scores, [0.6], 0.95)[:, 0] >= (low >= 0.6)).all()


def test_few_prompts_show_little() -> None:
    assert lower_bounds(np.ones((0, 2)), 0.95).tolist() == [0.0, 0.0]
    assert lower_bounds(np.ones((1, 1)), 0.95)[0] <= 0.05
    assert upper_bounds(np.zeros((6, 1)), 0.95)[0] >= 1 - 0.05 ** (1 / 6)
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        lower_bounds([[float("nan")]], 0.95)
