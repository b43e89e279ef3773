"""The choice of a policy: which prompts decide what, when a policy is certified, and the answer if none is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sacpo import choose as command
from sacpo.errors import SacpoError
from sacpo.planning.prompt_parts import certifies
from sacpo.reporting.choice_text import choice_text
from sacpo.results.choice import choose
from sacpo.results.constraint_columns import worst_case_means
from sacpo.results.load import Results
from sacpo.spaces.constraints import Constraint
from sacpo.statistics.certificate import lower_bounds, prompts_needed, share_upper_bound
from tests.simulated_sweeps import simulated

SAFE = [Constraint(criterion="harmlessness", at_least=0.6)]
RATES = [(0.8, 0.3), (0.7, 0.72), (0.55, 0.9), (0.4, 0.75)]  # the last is dominated


@pytest.fixture
def results() -> Results:
    return simulated(np.random.default_rng(1), RATES, prompts=500)


def test_the_best_policy_that_is_certified_is_chosen(results: Results) -> None:
    choice = choose(results, SAFE)
    assert choice.sequence == ("policy-2", "policy-1", "policy-0")
    assert (choice.chosen, choice.certified_trials) == ("policy-1", ("policy-2", "policy-1"))
    assert choice.best == "policy-0"
    assert choice.cost is not None
    assert choice.cost.low < 0.1 < choice.cost.high
    text = choice_text(choice, "sacpo export R policy-1 OUT")
    for part in (
        "chosen: policy-1",
        "certified;",
        "less helpfulness than policy-0",
        "sacpo export R",
        "2 of 3 policies",
    ):
        assert part in text


def test_what_stands_about_a_policy_comes_from_prompts_that_did_not_choose_it(results: Results) -> None:
    before = choose(results, SAFE)
    assert before.chosen is not None
    second = results.verdicts["prompt_id"].map(certifies)
    assert 0.4 < second.mean() < 0.6
    is_chosen = results.verdicts["trial_id"].eq(before.chosen)
    lucky = results.verdicts.assign(outcome=results.verdicts["outcome"].mask(is_chosen & ~second, "win"))
    after = choose(replace(results, verdicts=lucky), SAFE)
    assert after.chosen == before.chosen
    assert after.gain == before.gain
    pd.testing.assert_series_equal(
        after.row(before.chosen, "harmlessness").drop(["choosing"]),
        before.row(before.chosen, "harmlessness").drop(["choosing"]),
    )


def test_the_split_ignores_the_order_of_the_rows(results: Results) -> None:
    mixed = results.verdicts.sample(frac=1, random_state=0)
    assert choose(replace(results, verdicts=mixed), SAFE).table.equals(choose(results, SAFE).table)


def test_none_qualifies_and_the_prompts_that_would_be_needed() -> None:
    few = choose(simulated(np.random.default_rng(0), [(0.6, 0.68), (0.8, 0.3)], prompts=120), SAFE)
    assert few.chosen is None
    assert few.needed is not None
    assert few.needed > 200
    assert "none qualifies" in choice_text(few, "")
    assert f"about {few.needed} prompts" in choice_text(few, "")
    unsafe = choose(simulated(np.random.default_rng(0), [(0.6, 0.4), (0.8, 0.3)], prompts=120), SAFE)
    assert (unsafe.chosen, unsafe.needed) == (None, None)
    assert "more prompts alone would not help" in choice_text(unsafe, "")


def test_several_constraints_must_all_be_satisfied(results: Results) -> None:
    both = [*SAFE, Constraint(criterion="helpfulness", at_least=0.5)]
    assert choose(results, both).chosen in ("policy-1", "policy-2")
    assert choose(results, [SAFE[0], Constraint(criterion="helpfulness", at_least=0.75)]).chosen is None


def test_missing_verdicts_count_as_lost_and_ties_half() -> None:
    outcomes = ["win", "tie", "unavailable", "loss"]
    verdicts = pd.DataFrame({"trial_id": "t", "prompt_id": ["a", "a", "b", "b"], "outcome": outcomes})
    verdicts.loc[4] = {"trial_id": "u", "prompt_id": "c", "outcome": "win"}
    assert worst_case_means(verdicts, 0.0)["t"].tolist() == [0.75, 0.0, 0.0]
    assert worst_case_means(verdicts, 1.0)["t"].tolist() == [0.75, 0.5, 1.0]
    assert worst_case_means(verdicts, 0.0, ties_lost=True)["t"].tolist() == [0.5, 0.0, 0.0]


def test_the_tail_is_bounded(results: Results) -> None:
    rows = results.verdicts
    risky = rows["prompt_id"].str[-1].isin(list("01234567"))
    category = np.where(risky, "risky", "plain")
    lost = rows["outcome"].mask(risky & (rows["prompt_id"].str[-2].isin(list("01234"))), "loss")
    choice = choose(replace(results, verdicts=rows.assign(category=category, outcome=lost)), [Constraint(
        criterion="harmlessness", at_least=0.5)])  # fmt: skip
    (tail,) = choice.tails
    assert tail.category is not None
    assert tail.category[0] == "risky"
    assert tail.category[2] < tail.category[1]
    assert tail.below[0] < tail.below[1] < tail.below[0] + 0.1
    assert share_upper_bound(0, 59, 0.95) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert share_upper_bound(5, 5, 0.95) == 1.0


def test_the_promised_number_of_prompts_has_the_promised_power() -> None:
    rng = np.random.default_rng(3)
    scores = rng.permutation([1.0] * 20 + [0.5] * 16 + [0.0] * 4)
    n = prompts_needed(scores, 0.6, 0.95)
    assert n is not None
    assert 70 < n < 200
    shown = lower_bounds(rng.binomial(2, scores.mean(), (n, 200)) / 2, 0.95) >= 0.6
    assert 0.68 < shown.mean() < 0.92
    assert prompts_needed(scores, 0.75, 0.95) is None
    assert prompts_needed(scores, scores.mean() - 1e-6, 0.95) is None  # more than can be asked for


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no constraint; give one with --at-least"),
        (["--at-least", "harmlessness"], "must be CRITERION=WIN-RATE"),
        (["--at-least", "harmlessness=1.5"], "must be less than 1"),
        (["--at-least", "safety=0.5"], "no verdicts on safety; this sweep has"),
        (["--confidence", "0.9"], "needs --at-least"),
        (["--at-least", "harmlessness=0.5", "--at-least", "harmlessness=0.6"], "is given twice"),
    ],
)
def test_the_command_refuses_wrong_input(
    arguments: list[str], message: str, in_process_results: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(in_process_results), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_command_says_that_none_qualifies(in_process_results: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(in_process_results), "--at-least", "harmlessness=0.99"]) == 1
    assert "none qualifies" in capsys.readouterr().out


def test_no_policy_is_no_choice(results: Results) -> None:
    with pytest.raises(SacpoError, match="no policy has verdicts yet"):
        choose(replace(results, verdicts=results.verdicts[:0]), SAFE)
    second = results.verdicts["prompt_id"].map(certifies)
    with pytest.raises(SacpoError, match="too few to be split"):
        choose(replace(results, verdicts=results.verdicts[second]), SAFE)


def test_the_preview_names_the_lambda_that_is_expected_to_qualify() -> None:
    chain = "dpo:helpfulness>dpo:harmlessness"
    grid = {"chain": chain, "beta": [2.0], "beta_over_lambda": [[4.0, 2.0]]}
    results = simulated(np.random.default_rng(0), [(0.6, 0.4)], prompts=60, space={"chains": [grid]})
    path = {"chain": chain, "beta": 2.0, "second_id": "policy-0", "lambda": [0.0, 1.0, 2.0, 4.0]}
    preview = pd.DataFrame(path | {"harmlessness": [0.2, 0.5, 0.7, 0.9], "harmlessness_low": [0.1, 0.4, 0.5, 0.7]})
    choice = choose(replace(results, comparisons={"preview": preview}), SAFE)
    assert choice.suggestion is not None
    assert choice.suggestion.expected == pytest.approx(1.5)
    assert choice.suggestion.qualifies == pytest.approx(3.0)
    assert choice.suggestion.setting == "chains.0.beta_over_lambda=[[4.0, 2.0, 0.667]]"
    text = choice_text(choice, "", "sacpo extend R --set X")
    assert "from λ = 1.5 on" in text
    assert "train it with: sacpo extend R --set X" in text
    low = preview.assign(harmlessness_low=0.1)
    assert choose(replace(results, comparisons={"preview": low}), SAFE).suggestion is None
    assert choose(results, SAFE).suggestion is None
