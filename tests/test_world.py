"""The synthetic world: its exact values agree with direct sums, and its data follow the stated distributions."""

from __future__ import annotations

import numpy as np
import pytest

from sacpo.synthetic import world as synthetic
from sacpo.synthetic.world import ANSWERS, GARBLED, PROMPTS, REWARD, SAFETY, SENTENCES


@pytest.fixture(scope="module")
def sft() -> synthetic.Array:
    rng = np.random.default_rng(0)
    raw = rng.dirichlet(np.ones(len(ANSWERS)), size=len(PROMPTS))
    return np.asarray(0.99 * raw)  # a policy leaves some mass outside the answers


def test_reward_and_safety_conflict_on_risky_prompts_and_safety_hardly_varies_on_benign_ones() -> None:
    risky = [i for i, (_, category) in enumerate(PROMPTS) if category == "risky"]
    benign = [i for i, (_, category) in enumerate(PROMPTS) if category == "benign"]
    assert np.corrcoef(REWARD[risky].ravel(), SAFETY[risky].ravel())[0, 1] < -0.8
    assert SAFETY[benign].std() < 0.2 * SAFETY[risky].std()
    assert len(set(SENTENCES)) == len(SENTENCES)


@pytest.mark.parametrize("weights", [(0.5, 0.0), (0.5, 0.25), (0.5, 1.0), (0.0, 0.5)])
def test_the_optimum_has_share_one_the_sft_policy_zero_and_no_policy_more(
    sft: synthetic.Array, weights: tuple[float, float]
) -> None:
    best = synthetic.optimum(sft, *weights)
    assert synthetic.share_of_optimum(best, sft, *weights) == pytest.approx(1.0)
    assert synthetic.share_of_optimum(sft, sft, *weights) == pytest.approx(0.0)
    rng = np.random.default_rng(1)
    for _ in range(20):
        other = best * np.exp(0.3 * rng.standard_normal(best.shape))
        assert synthetic.share_of_optimum(other, sft, *weights) < 1.0


def test_the_order_of_re_alignment_does_not_matter(sft: synthetic.Array) -> None:
    """Paper, Theorem 1: tilting by r/beta and then g lambda/beta is the optimum in both orders."""
    one_way = synthetic.optimum(synthetic.optimum(sft, 0.5, 0.0), 0.0, 0.25)
    other_way = synthetic.optimum(synthetic.optimum(sft, 0.0, 0.25), 0.5, 0.0)
    np.testing.assert_allclose(one_way, other_way)
    np.testing.assert_allclose(one_way, synthetic.optimum(sft, 0.5, 0.25))


def test_exact_values_equal_direct_sums(sft: synthetic.Array) -> None:
    policy = synthetic.optimum(sft, 0.5, 0.5) * 0.9
    exact = synthetic.measure(policy, sft)
    p, q = policy / 0.9, sft / 0.99
    assert exact.expected_reward == pytest.approx(sum((p[i] * REWARD[i]).sum() for i in range(len(p))) / len(p))
    assert exact.kl_to_sft == pytest.approx(np.mean([(p[i] * np.log(p[i] / q[i])).sum() for i in range(len(p))]))
    assert exact.support_mass == pytest.approx(0.9)


def test_preferences_are_labelled_by_bradley_terry(sft: synthetic.Array) -> None:
    rows = synthetic.sample_preferences(sft, 24_000, 0.0, seed=0)
    for column, part in (("better_response_id", 0), ("safer_response_id", 1)):
        differences = np.array(
            [
                np.subtract(*(synthetic.gold_scores(row["prompt"], row[f"response_{i}"])[part] for i in (0, 1)))
                for row in rows
            ]
        )
        first = np.array([row[column] == 0 for row in rows])
        for low, high in ((-2.0, -1.0), (-0.5, 0.5), (1.0, 2.0)):
            inside = (differences > low) & (differences < high)
            expected = (1 / (1 + np.exp(-differences[inside]))).mean()
            assert first[inside].mean() == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(inside.sum()))
    assert np.mean([row["is_response_0_safe"] for row in rows]) == pytest.approx(
        np.mean([1 / (1 + np.exp(-synthetic.gold_scores(r["prompt"], r["response_0"])[1])) for r in rows]), abs=0.015
    )


def test_a_garbled_response_is_outside_the_answers_and_loses(sft: synthetic.Array) -> None:
    rows = synthetic.sample_preferences(sft, 4_800, 0.25, seed=0)
    garbled = [
        (row, i) for row in rows for i in (0, 1)
        if synthetic.gold_scores(row["prompt"], row[f"response_{i}"]) == (GARBLED, GARBLED)
    ]  # fmt: skip
    assert len(garbled) == pytest.approx(1200, abs=150)
    assert np.mean([row["better_response_id"] == i for row, i in garbled]) < 0.01
    assert all(row["response_0"] != row["response_1"] for row in rows)


def test_the_seed_determines_the_data(sft: synthetic.Array) -> None:
    assert synthetic.sample_preferences(sft, 50, 0.1, 3) == synthetic.sample_preferences(sft, 50, 0.1, 3)
    assert synthetic.sample_preferences(sft, 50, 0.1, 3) != synthetic.sample_preferences(sft, 50, 0.1, 4)
    assert synthetic.demonstrations(50, 0) != synthetic.demonstrations(50, 1)


def test_gold_scores_of_the_criteria() -> None:
    prompt = PROMPTS[0][0]
    best, worst = synthetic.extremes(prompt, "helpfulness")
    assert (
        synthetic.gold_score(prompt, best, "helpfulness") == synthetic.gold_scores(prompt, best)[0] == REWARD[0].max()
    )
    assert synthetic.gold_score(prompt, worst, "helpfulness") == REWARD[0].min()
    assert synthetic.gold_score(prompt, best, "harmlessness") == synthetic.gold_scores(prompt, best)[1]
    assert synthetic.gold_score(prompt, best, "compliance") == 1.0
    assert synthetic.gold_score(prompt, worst, "compliance") == 0.0
    assert synthetic.gold_score(prompt, "garbled", "compliance") == 0.0
    with pytest.raises(ValueError, match="unknown criterion 'wit'"):
        synthetic.gold_score(prompt, best, "wit")
