"""Constraints on the mean of a reward model's scores: bounds, columns, choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sacpo.errors import SacpoError, SpaceError
from sacpo.judges.scalar import by_score
from sacpo.judges.verdicts import AnswerPair, policy_score
from sacpo.reporting.choice_text import choice_text
from sacpo.results.choice import choose
from sacpo.results.constraint_columns import constraint_columns
from sacpo.results.front import Resamples, own_verdicts
from sacpo.results.load import Results
from sacpo.results.scores import with_scores
from sacpo.spaces.constraints import Constraint, parse_constraints
from sacpo.spaces.loading import parse_space
from sacpo.statistics.mean_bounds import FEWEST_PROMPTS, mean_lower_bounds, prompts_for_mean
from tests.simulated_sweeps import simulated
from tests.spaces import small

MEAN = {"criterion": "harmlessness", "measure": "mean_score"}


def bound(at_least: float) -> Constraint:
    return Constraint(criterion="harmlessness", measure="mean_score", at_least=at_least)


def scored_trial(scores: np.ndarray, judge: str = "reward_model") -> pd.DataFrame:
    """One trial's verdicts by a judge that gives these scores; a NaN is an answer without one."""
    return pd.DataFrame(
        {
            "trial_id": "t",
            "criterion": "harmlessness",
            "prompt_id": [f"{i:05d}" for i in range(len(scores))],
            "outcome": ["unavailable" if np.isnan(score) else "win" for score in scores],
            "raw": [f"too long: {score:g} 0" if np.isnan(score) else f"{score:.6g} 0" for score in scores],
            "judge": judge,
        }
    )


def sweep(*means: float, judge: str = "reward_model") -> Results:
    """A sweep whose policies have these mean scores of harmlessness, and helpfulness that falls as they rise."""
    rng = np.random.default_rng(0)
    results = simulated(rng, [(0.9 - 0.1 * i, 0.5) for i in range(len(means))], 300)
    table = results.verdicts.assign(judge=judge)
    mean = table["trial_id"].map({f"policy-{i}": value for i, value in enumerate(means)})
    table["raw"] = [f"{score:.6g} 0" for score in mean + rng.standard_normal(len(table))]
    return replace(results, verdicts=table)


def test_the_score_of_an_answer_is_read_from_the_verdict() -> None:
    pairs = [AnswerPair("1", "", 0, "question", policy, "base") for policy in ("good", "long")]
    scores = {"good": 1.25, "base": -0.5, "long": float("nan")}
    verdicts = by_score(lambda answers: [scores[answer] for _, answer in answers], unscored="too long")(pairs)
    read = [policy_score(verdict.raw) for verdict in verdicts]
    assert read[0] == 1.25
    assert np.isnan(read[1])
    assert np.isnan(policy_score("A is better"))


@pytest.mark.parametrize("skew", [0, 1, -1])
def test_lower_bounds_of_means_hold_about_as_often_as_they_say(skew: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((80, 1000)) if skew == 0 else skew * (rng.exponential(1, (80, 1000)) - 1)
    missed = float((mean_lower_bounds(scores, 0.95) > 0).mean())
    assert missed < 0.05 + 3 * (0.05 * 0.95 / 1000) ** 0.5
    if skew == 0:
        assert missed > 0.02


def test_nothing_is_shown_by_few_or_constant_scores() -> None:
    assert np.isneginf(mean_lower_bounds(np.arange(FEWEST_PROMPTS - 1.0)[:, None], 0.95)).all()
    assert np.isneginf(mean_lower_bounds(np.ones((50, 1)), 0.95)).all()
    assert prompts_for_mean([1.0, 2.0], 3.0, 0.95) is None
    assert prompts_for_mean(np.tile([0.0, 2.0], 20), 0.9, 0.95) == pytest.approx((1.645 + 0.842) ** 2 / 0.01, rel=0.05)


@pytest.mark.parametrize(
    ("at_least", "missing", "state"),
    [(1.5, 0, "satisfied"), (2.0, 0, "undecided"), (2.5, 0, "violated"), (1.5, 60, "undecided"), (4.5, 20, "violated")],
)
def test_a_trial_satisfies_or_violates_a_bound_on_its_mean_score(at_least: float, missing: int, state: str) -> None:
    scores = np.random.default_rng(0).standard_normal(200)
    scores += 2 - scores.mean()
    scores[:missing] = np.nan
    columns = constraint_columns([bound(at_least)], scored_trial(scores), is_baseline=False)
    assert columns == {"harmlessness_constraint": state, "constraint": state}
    assert constraint_columns([bound(at_least)], scored_trial(scores, "some-llm"), True)["constraint"] == "undecided"


def test_a_choice_maximises_helpfulness_among_those_certified_by_their_scores() -> None:
    results = sweep(0.2, 2.0, 3.0)
    choice = choose(results, [bound(1.0)])
    assert choice.chosen == "policy-1"
    row = choice.row("policy-1", "harmlessness mean score")
    assert 1.6 < row["lower_bound"] < row["certifying"] < 2.4
    text = choice_text(choice, "sacpo export")
    assert "harmlessness mean score at least 1 with confidence 0.95: certified" in text
    assert "ties as lost" not in text.split("rule:")[0]


def test_none_qualifies_by_its_scores() -> None:
    choice = choose(sweep(0.2, 2.0), [bound(2.05)])
    assert choice.chosen is None
    assert "none qualifies" in choice_text(choice, "")


def test_the_best_under_a_mean_score_is_resampled_too() -> None:
    results = sweep(0.2, 2.0, 3.0)
    own = with_scores(own_verdicts(results.verdicts, "sft"), [bound(1.0)])
    resamples = Resamples(["sft", "policy-0", "policy-1", "policy-2"], "sft", own)
    best = resamples.columns(results.trials, [bound(1.0)])["p_best"]
    assert best.iloc[2] > 0.95  # the SFT policy has no scores here, so it is never the best


def test_a_choice_by_scores_that_no_judge_gave_is_refused() -> None:
    with pytest.raises(SacpoError, match="judge of harmlessness compares answers and gives no score"):
        choose(sweep(0.2, 2.0, judge="some-llm"), [bound(1.0)])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"evaluation__harmlessness__judge": {"kind": "noisy"}}, "the judge of harmlessness (noisy) compares answers"),
        ({}, ""),
    ],
)
def test_a_bound_on_a_mean_score_needs_a_judge_that_gives_scores(changes: dict[str, Any], problem: str) -> None:
    data = small(constraint=MEAN | {"at_least": 3.5}, **changes)
    if not problem:
        assert parse_space(data).constraint == [bound(3.5)]
        return
    with pytest.raises(SpaceError) as caught:
        parse_space(data)
    (line,) = caught.value.problems
    assert line.startswith("constraint.0.measure: is mean_score, but")
    assert problem in line


def test_the_command_line_bounds_mean_scores_of_any_size() -> None:
    assert parse_constraints([], None, ["harmlessness=-3.5"]) == [bound(-3.5)]
    with pytest.raises(SpaceError, match="--mean-score-at-least harmlessness=high: must be CRITERION=SCORE"):
        parse_constraints([], None, ["harmlessness=high"])
