"""Statistics, compared with closed forms, other libraries and simulations with known parameters."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from sacpo.statistics.agreement import OUTCOMES, agreement
from sacpo.statistics.bradley_terry import bradley_terry
from sacpo.statistics.power import smallest_difference
from sacpo.statistics.variance import seed_estimate, variance_split
from sacpo.statistics.win_rate import differences, estimates, prompt_means, unseen_share, win_rate

NAN = float("nan")


def sample_means(seed: int, prompts: int, mean: float, columns: int, verdicts: int = 2) -> np.ndarray:
    """Prompt means (prompts, columns) of independent policies whose true win rate is `mean`."""
    rng = np.random.default_rng(seed)
    return rng.binomial(verdicts, rng.beta(3 * mean, 3 * (1 - mean), (prompts, columns))) / verdicts


def equal(first: object, second: object) -> bool:
    """Whether two estimates are equal up to rounding."""
    return list(vars(first).values()) == pytest.approx(list(vars(second).values()), abs=1e-12, nan_ok=True)


# Win rates


def test_prompt_means_are_sorted_by_prompt() -> None:
    ids, means = prompt_means([1.0, 0.0, 0.5, 1.0], ["b", "a", "b", "c"])
    assert ids.tolist() == ["a", "b", "c"]
    assert means.tolist() == [0.0, 0.75, 1.0]


def test_a_win_rate_is_the_estimate_of_its_column_and_independent_of_other_columns() -> None:
    rng = np.random.default_rng(1)
    scores, prompts = rng.choice([0.0, 0.5, 1.0], (240, 5)), np.repeat(np.arange(80), 3)
    means = np.column_stack([prompt_means(column, prompts)[1] for column in scores.T])
    for column, estimate in zip(scores.T, estimates(means), strict=True):
        assert equal(estimate, win_rate(column, prompts))


def test_columns_that_lack_prompts_are_estimated_on_their_own() -> None:
    means = sample_means(2, 60, 0.7, 4)
    whole = estimates(means)
    means[:5, 1] = NAN
    means[:, 2] = NAN
    complete, partial, empty, _ = estimates(means)
    assert equal(complete, whole[0])
    assert equal(partial, estimates(means[5:, 1:2])[0])
    assert partial.n_prompts == 55
    assert np.isnan([empty.value, empty.low, empty.high]).all()
    assert empty.n_prompts == 0


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (5, 0)])
def test_matrices_without_verdicts(shape: tuple[int, int]) -> None:
    assert [estimate.n_prompts for estimate in estimates(np.empty(shape))] == [0] * shape[1]


def test_higher_confidence_gives_wider_intervals() -> None:
    means = np.column_stack([sample_means(3, 83, 0.7, 1), np.ones(83)])
    for wide, narrow in zip(estimates(means, 0.99), estimates(means, 0.8), strict=True):
        assert wide.low < narrow.low <= narrow.high <= wide.high
    wide, narrow = (differences(means, [(0, 1)], confidence)[0] for confidence in (0.99, 0.8))
    assert wide.low < narrow.low <= narrow.high < wide.high


@pytest.mark.parametrize("mean", [0.5, 0.95])
def test_intervals_of_few_prompts_cover_the_truth(mean: float) -> None:
    coverage = np.mean([e.low <= mean <= e.high for e in estimates(sample_means(4, 83, mean, 1500))])
    assert coverage == pytest.approx(0.95, abs=0.025)  # four Monte Carlo standard errors; the benchmark has fewer


def test_invalid_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        estimates([0.5, 0.5])
    with pytest.raises(ValueError, match="within 0 and 1"):
        differences([[0.5, 1.5]], [(0, 1)])


# Differences


def test_differences_are_paired() -> None:
    difficulty = np.random.default_rng(5).beta(0.5, 0.5, 100)
    means = np.column_stack([np.clip(difficulty + 0.03 * np.sin(np.arange(100)) + 0.1, 0, 1), difficulty])
    (estimate,) = differences(means, [(0, 1)])
    assert estimate.value == pytest.approx((means[:, 0] - means[:, 1]).mean())
    assert 0 < estimate.low < estimate.value < estimate.high
    assert estimates(means)[0].low < estimates(means)[1].high  # unpaired intervals do not separate the two


def test_differences_change_sign_with_their_order() -> None:
    means = sample_means(6, 83, 0.8, 2)
    forward, backward = differences(means, [(0, 1), (1, 0)])
    assert (forward.value, forward.low, forward.high) == pytest.approx((-backward.value, -backward.high, -backward.low))


def test_differences_use_the_prompts_that_both_columns_have() -> None:
    means = sample_means(7, 50, 0.6, 3)
    means[:10, 0] = means[30:, 1] = means[:30, 2] = NAN
    overlapping, disjoint = differences(means, [(0, 1), (1, 2)])
    assert equal(overlapping, differences(means[10:30], [(0, 1)])[0])
    assert (overlapping.n_prompts, disjoint.n_prompts) == (20, 0)
    assert np.isnan(disjoint.value)


def test_constant_differences_have_an_interval_of_positive_width() -> None:
    first = sample_means(8, 40, 0.5, 1, verdicts=6)[:, 0] * 0.9
    (estimate,) = differences(np.column_stack([first, first + 0.1]), [(0, 1)])
    assert (estimate.value, estimate.n_prompts) == (pytest.approx(-0.1), 40)
    assert estimate.high - estimate.value == pytest.approx(1 - 0.025 ** (1 / 40))
    assert differences(np.ones((1, 2)), [(0, 1)])[0].high == pytest.approx(0.975)
    assert differences(np.eye(2), []) == []


def test_differences_of_high_rates_cover_the_truth() -> None:
    means = sample_means(9, 83, 0.95, 2000)
    results = differences(means, [(i, i + 1000) for i in range(1000)])
    assert np.mean([estimate.low <= 0 <= estimate.high for estimate in results]) == pytest.approx(0.95, abs=0.025)


def test_unseen_share_is_absent_from_a_sample_with_probability_of_one_tail() -> None:
    assert (1 - unseen_share(30)) ** 30 == pytest.approx(0.025)


# Seeds


def seed_means(rng: np.random.Generator, prompts: int, seeds: int, spread: float) -> np.ndarray:
    """Prompt means of a setting; each seed's true win rate is 0.5 - `spread` or 0.5 + `spread`, with equal chance."""
    chances = rng.beta(2, 2, (prompts, 1)) + rng.choice([-spread, spread], (1, seeds))
    return rng.binomial(2, np.clip(chances, 0, 1)) / 2


def test_seeds_that_differ_widen_the_interval() -> None:
    equal_seeds = np.repeat(sample_means(10, 83, 0.5, 1, verdicts=6) * 0.8, 3, axis=1)
    different_seeds = equal_seeds + np.array([0.0, 0.1, 0.2])
    (prompts_only,) = estimates(different_seeds.mean(axis=1)[:, None])
    wide = seed_estimate(different_seeds)
    assert wide.value == pytest.approx(prompts_only.value)
    assert wide.low < prompts_only.low < prompts_only.high < wide.high
    narrow = seed_estimate(equal_seeds)
    assert narrow.high - narrow.low == pytest.approx(prompts_only.high - prompts_only.low, rel=0.1)


def test_seed_estimates_cover_the_truth_with_few_seeds() -> None:
    rng = np.random.default_rng(11)
    results = [seed_estimate(seed_means(rng, 83, 5, 0.1)) for _ in range(400)]
    assert np.mean([estimate.low <= 0.5 <= estimate.high for estimate in results]) > 0.93


def test_seed_estimates_in_degenerate_cases() -> None:
    means = sample_means(12, 40, 0.7, 1)
    assert seed_estimate(means) == estimates(means)[0]
    assert seed_estimate(np.column_stack([means, np.full(40, NAN)])) == estimates(means)[0]
    assert seed_estimate(np.ones((20, 3))) == estimates(np.ones((20, 1)))[0]
    assert seed_estimate(np.full((3, 2), NAN)).n_prompts == 0
    assert seed_estimate([[0.5, 1.0]]).n_prompts == 1


def test_variance_split_recovers_known_components() -> None:
    """The scores are Gaussian: all components are known, and the moments do not depend on the distribution."""
    rng = np.random.default_rng(13)
    prompts, seeds, orders, repeats = 60, 6, 2, 3
    deviations = {"prompt": 0.3, "seed": 0.1, "answer": 0.15, "repeat": 0.2}
    index = np.indices((prompts, seeds, orders, repeats)).reshape(4, -1)
    cells = index[0] * 1000 + index[1] * 10 + index[2]
    splits = []
    for _ in range(300):
        scores = (
            rng.normal(0.5, deviations["prompt"], (prompts, 1, 1, 1))
            + rng.normal(0, deviations["seed"], (1, seeds, 1, 1))
            + rng.normal(0, deviations["answer"], (prompts, seeds, orders, 1))
            + rng.normal(0, deviations["repeat"], (prompts, seeds, orders, repeats))
        )
        split = variance_split(scores.ravel(), index[0], index[1], cells)
        splits.append([split.prompts, split.seeds, split.repeats])
    answers = deviations["answer"] ** 2 / (prompts * seeds * orders)
    expected = [
        deviations["prompt"] ** 2 / prompts + answers,
        deviations["seed"] ** 2 / seeds,
        deviations["repeat"] ** 2 / (prompts * seeds * orders * repeats),
    ]
    assert np.mean(splits, axis=0) == pytest.approx(expected, rel=0.1)


def test_parts_that_the_sample_cannot_show_are_nan() -> None:
    scores = [1.0, 0.0, 0.5, 1.0, 0.0, 1.0]
    prompts, seeds = ["a", "a", "b", "b", "c", "c"], [0, 1, 0, 1, 0, 1]
    unrepeated = variance_split(scores, prompts, seeds, range(6))
    assert np.isnan(unrepeated.repeats)
    assert unrepeated.prompts > 0
    one_seed = variance_split(scores, prompts, [0] * 6, ["x"] * 6)
    assert np.isnan(one_seed.seeds)
    assert one_seed.repeats > 0
    assert variance_split([1.0] * 4, [0, 0, 1, 1], [0, 1, 0, 1], range(4)).seeds == 0
    assert np.isnan(variance_split([1.0], ["a"], [0], [0]).prompts)
    with pytest.raises(ValueError, match="one length"):
        variance_split([1.0], ["a"], [0], [0, 1])
    with pytest.raises(ValueError, match="at least one"):
        variance_split([], [], [], [])


def test_a_judge_without_noise_contributes_no_variance() -> None:
    means = sample_means(14, 30, 0.7, 2)
    scores = np.repeat(means.ravel(), 3)
    prompts, seeds = (np.repeat(level.ravel(), 3) for level in np.indices(means.shape))
    split = variance_split(scores, prompts, seeds, np.zeros(scores.size))
    assert split.repeats == 0
    assert split.prompts == pytest.approx(means.mean(axis=1).var(ddof=1) / 30)


# Bradley-Terry


def tournament(rng: np.random.Generator, strengths: list[float], prompts: int) -> np.ndarray:
    """Wins (prompts, n, n) of policies with these log strengths: two verdicts on each prompt and pair of policies."""
    n = len(strengths)
    wins = np.zeros((prompts, n, n))
    for i in range(n):
        for j in range(i):
            chance = 1 / (1 + np.exp(strengths[j] - strengths[i]))
            wins[:, i, j] = rng.binomial(2, chance, prompts)
            wins[:, j, i] = 2 - wins[:, i, j]
    return wins


def test_strengths_equal_those_of_logistic_regression() -> None:
    wins = tournament(np.random.default_rng(17), [0, 0.5, 1.5, -1], 2000)
    strength, low, high = bradley_terry(wins, 0)
    table, n = wins.sum(axis=0), 4
    first, second = np.nonzero(table)
    design = np.eye(n)[first] - np.eye(n)[second]
    # Each row also enters with reversed sign, because scikit-learn needs both classes; this doubles the likelihood.
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(
        np.vstack([design, -design])[:, 1:],
        np.repeat([1, 0], len(design)),
        sample_weight=np.tile(table[first, second], 2),
    )
    assert strength[1:] == pytest.approx(model.coef_[0], abs=1e-3)  # the prior makes a small difference
    assert (strength[0], low[0], high[0]) == (0, 0, 0)
    assert ((low <= strength) & (strength <= high)).all()


def test_order_of_policies_and_prompts_does_not_matter() -> None:
    wins = tournament(np.random.default_rng(18), [0, 0.5, 1.5, -1], 60)
    whole = bradley_terry(wins, 0)
    order = np.array([2, 3, 0, 1])
    for permuted, original in zip(bradley_terry(wins[:, order][:, :, order], 2), whole, strict=True):
        assert permuted == pytest.approx(original[order], abs=1e-8)
    strength, low, high = bradley_terry(wins[::-1], 0)
    assert strength == pytest.approx(whole[0], abs=1e-8)
    assert np.array([low, high]) == pytest.approx(np.array(whole[1:]), abs=0.1)  # the resamples differ


def test_strengths_relative_to_another_baseline_are_shifted() -> None:
    wins = tournament(np.random.default_rng(19), [0, 0.5, 1.5], 60)
    first, second = bradley_terry(wins, 0)[0], bradley_terry(wins, 2)[0]
    assert first - first[2] == pytest.approx(second, abs=1e-8)


def test_intervals_of_strengths_cover_the_truth() -> None:
    rng, truth = np.random.default_rng(20), [0, 0.5, 1.0]
    results = [bradley_terry(tournament(rng, truth, 83), 0) for _ in range(150)]
    coverage = np.mean([(low <= truth) & (truth <= high) for _, low, high in results], axis=0)
    assert coverage[1:].mean() == pytest.approx(0.95, abs=0.04)


def test_undefeated_policies_have_a_finite_strength_and_no_bounds() -> None:
    wins = tournament(np.random.default_rng(21), [0, 0.5, 0], 40)
    wins[:, 2, :2], wins[:, :2, 2] = 2, 0
    strength, low, high = bradley_terry(wins, 0)
    assert np.isfinite(strength).all()
    assert strength[2] > strength[1] + 3
    assert np.isnan([low[2], high[2]]).all()
    assert np.isfinite([low[:2], high[:2]]).all()


def test_bradley_terry_refuses() -> None:
    for wins in (np.zeros((3, 2)), np.zeros((0, 2, 2)), np.full((1, 2, 2), -1), np.full((1, 2, 2), NAN)):
        with pytest.raises(ValueError, match="wins"):
            bradley_terry(wins, 0)
    with pytest.raises(IndexError):
        bradley_terry(np.ones((1, 2, 2)), 2)


# Agreement


def test_kappa_equals_scikit_learns_and_is_inside_its_interval() -> None:
    rng = np.random.default_rng(22)
    first = rng.choice(OUTCOMES, 200).tolist()
    second = [o if keep else str(rng.choice(OUTCOMES)) for o, keep in zip(first, rng.random(200) < 0.6, strict=True)]
    result = agreement(first, second, np.repeat(np.arange(100), 2))
    assert result.n == 200
    assert result.raw == np.mean([a == b for a, b in zip(first, second, strict=True)])
    assert result.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert result.kappa_low < result.kappa < result.kappa_high


def test_prompts_are_the_unit_of_agreement() -> None:
    rng = np.random.default_rng(23)
    first, second = rng.choice(OUTCOMES, 50).tolist(), rng.choice(OUTCOMES, 50).tolist()
    single = agreement(first, second, np.arange(50))
    repeated = agreement(first * 4, second * 4, np.tile(np.arange(50), 4))
    assert (repeated.kappa_low, repeated.kappa_high) == pytest.approx((single.kappa_low, single.kappa_high))


def test_agreement_in_degenerate_cases() -> None:
    full = agreement(["win", "loss"] * 20, ["win", "loss"] * 20, np.arange(40))
    assert (full.raw, full.kappa, full.kappa_high) == (1, 1, 1)
    assert full.kappa_low == pytest.approx(1 - 2 * unseen_share(40))
    chance = agreement(["win"] * 3, ["win"] * 3, ["a", "b", "c"])
    assert chance.raw == 1
    assert np.isnan([chance.kappa, chance.kappa_low, chance.kappa_high]).all()
    assert agreement([], [], []).n == 0
    with pytest.raises(ValueError, match="'unparsable'"):
        agreement(["win"], ["unparsable"], ["a"])
    with pytest.raises(ValueError, match="length"):
        agreement(["win"], ["win", "loss"], ["a"])


# Power


@pytest.mark.parametrize("prompts", [83, 805])
def test_the_smallest_difference_is_detected_with_the_stated_power(prompts: int) -> None:
    difference = smallest_difference(prompts)
    rng = np.random.default_rng(24)
    scores = (rng.random((prompts, 2000)) < 0.5 + difference).astype(float)
    detected = np.mean([estimate.low > 0.5 for estimate in estimates(scores)])
    assert detected == pytest.approx(0.8, abs=0.05)


def test_the_smallest_difference_falls_with_prompts_and_noise() -> None:
    assert smallest_difference(100) == pytest.approx((1.959964 + 0.841621) * 0.05)
    assert smallest_difference(400) == pytest.approx(smallest_difference(100) / 2)
    assert smallest_difference(100, deviation=0.25) == pytest.approx(smallest_difference(100) / 2)
    with pytest.raises(ValueError, match="prompts"):
        smallest_difference(0)
