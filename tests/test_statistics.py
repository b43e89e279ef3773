"""The statistics of win rates against closed forms, other libraries and simulated truth."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from sacpo.statistics.agreement import OUTCOMES, agreement
from sacpo.statistics.bradley_terry import bradley_terry
from sacpo.statistics.length import length_controlled
from sacpo.statistics.power import smallest_difference
from sacpo.statistics.variance import seed_estimate, variance_split
from sacpo.statistics.win_rate import differences, estimates, prompt_means, unseen_share, win_rate

NAN = float("nan")


def drawn(seed: int, prompts: int, mean: float, columns: int, verdicts: int = 2) -> np.ndarray:
    """Prompt means (prompts, columns) of independent policies with a true win rate of `mean`."""
    rng = np.random.default_rng(seed)
    return rng.binomial(verdicts, rng.beta(3 * mean, 3 * (1 - mean), (prompts, columns))) / verdicts


def same(first: object, second: object) -> bool:
    """Estimates are equal, but for rounding."""
    return list(vars(first).values()) == pytest.approx(list(vars(second).values()), abs=1e-12, nan_ok=True)


# Win rates


def test_prompt_means_are_sorted_by_prompt() -> None:
    ids, means = prompt_means([1.0, 0.0, 0.5, 1.0], ["b", "a", "b", "c"])
    assert ids.tolist() == ["a", "b", "c"]
    assert means.tolist() == [0.0, 0.75, 1.0]


def test_a_win_rate_is_the_estimate_of_its_column_whatever_stands_beside_it() -> None:
    rng = np.random.default_rng(1)
    scores, prompts = rng.choice([0.0, 0.5, 1.0], (240, 5)), np.repeat(np.arange(80), 3)
    means = np.column_stack([prompt_means(column, prompts)[1] for column in scores.T])
    for column, estimate in zip(scores.T, estimates(means), strict=True):
        assert same(estimate, win_rate(column, prompts))


def test_columns_that_lack_prompts_are_estimated_on_their_own() -> None:
    means = drawn(2, 60, 0.7, 4)
    whole = estimates(means)
    means[:5, 1] = NAN
    means[:, 2] = NAN
    found = estimates(means)
    assert same(found[0], whole[0])
    assert same(found[1], estimates(means[5:, 1:2])[0])
    assert found[1].n_prompts == 55
    assert np.isnan([found[2].value, found[2].low, found[2].high]).all()
    assert found[2].n_prompts == 0


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (5, 0)])
def test_matrices_without_verdicts(shape: tuple[int, int]) -> None:
    assert [estimate.n_prompts for estimate in estimates(np.empty(shape))] == [0] * shape[1]


def test_more_confidence_is_wider() -> None:
    means = np.column_stack([drawn(3, 83, 0.7, 1), np.ones(83)])
    for most, less in zip(estimates(means, 0.99), estimates(means, 0.8), strict=True):
        assert most.low < less.low <= less.high <= most.high
    most, less = (differences(means, [(0, 1)], confidence)[0] for confidence in (0.99, 0.8))
    assert most.low < less.low <= less.high < most.high


@pytest.mark.parametrize("mean", [0.5, 0.95])
def test_intervals_of_few_prompts_cover_the_truth(mean: float) -> None:
    found = estimates(drawn(4, 83, mean, 1500))
    inside = np.mean([estimate.low <= mean <= estimate.high for estimate in found])
    assert inside == pytest.approx(0.95, abs=0.025)  # four Monte Carlo errors; the benchmark is finer


def test_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        estimates([0.5, 0.5])
    with pytest.raises(ValueError, match="within 0 and 1"):
        differences([[0.5, 1.5]], [(0, 1)])


# Differences


def test_differences_are_paired() -> None:
    hard = np.random.default_rng(5).beta(0.5, 0.5, 100)
    means = np.column_stack([np.clip(hard + 0.03 * np.sin(np.arange(100)) + 0.1, 0, 1), hard])
    (found,) = differences(means, [(0, 1)])
    assert found.value == pytest.approx((means[:, 0] - means[:, 1]).mean())
    assert 0 < found.low < found.value < found.high
    assert estimates(means)[0].low < estimates(means)[1].high  # that one wins more shows only on the same prompts


def test_differences_change_sign_with_their_order() -> None:
    means = drawn(6, 83, 0.8, 2)
    one, other = differences(means, [(0, 1), (1, 0)])
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


def test_differences_use_the_prompts_that_both_have() -> None:
    means = drawn(7, 50, 0.6, 3)
    means[:10, 0] = means[30:, 1] = means[:30, 2] = NAN
    both, none = differences(means, [(0, 1), (1, 2)])
    assert same(both, differences(means[10:30], [(0, 1)])[0])
    assert (both.n_prompts, none.n_prompts) == (20, 0)
    assert np.isnan(none.value)


def test_equal_differences_keep_a_width() -> None:
    first = drawn(8, 40, 0.5, 1, verdicts=6)[:, 0] * 0.9
    found, *_ = differences(np.column_stack([first, first + 0.1]), [(0, 1)])
    assert (found.value, found.n_prompts) == (pytest.approx(-0.1), 40)
    assert found.high - found.value == pytest.approx(1 - 0.025 ** (1 / 40))
    assert differences(np.ones((1, 2)), [(0, 1)])[0].high == pytest.approx(0.975)
    assert differences(np.eye(2), []) == []


def test_differences_of_high_rates_cover_the_truth() -> None:
    means = drawn(9, 83, 0.95, 2000)
    found = differences(means, [(i, i + 1000) for i in range(1000)])
    assert np.mean([estimate.low <= 0 <= estimate.high for estimate in found]) == pytest.approx(0.95, abs=0.025)


def test_unseen_share_is_just_not_improbable() -> None:
    assert (1 - unseen_share(30)) ** 30 == pytest.approx(0.025)


# Seeds


def seeded(rng: np.random.Generator, prompts: int, seeds: int, spread: float) -> np.ndarray:
    """Prompt means of a setting whose seeds' win rates are 0.5 -/+ `spread`, evenly."""
    chances = rng.beta(2, 2, (prompts, 1)) + rng.choice([-spread, spread], (1, seeds))
    return rng.binomial(2, np.clip(chances, 0, 1)) / 2


def test_seeds_that_differ_widen_the_interval() -> None:
    one = np.repeat(drawn(10, 83, 0.5, 1, verdicts=6) * 0.8, 3, axis=1)
    apart = one + np.array([0.0, 0.1, 0.2])
    (prompts_only,) = estimates(apart.mean(axis=1)[:, None])
    found = seed_estimate(apart)
    assert found.value == pytest.approx(prompts_only.value)
    assert found.low < prompts_only.low < prompts_only.high < found.high
    alike = seed_estimate(one)
    assert alike.high - alike.low == pytest.approx(prompts_only.high - prompts_only.low, rel=0.1)


def test_seed_estimates_cover_the_truth_with_few_seeds() -> None:
    rng = np.random.default_rng(11)
    found = [seed_estimate(seeded(rng, 83, 5, 0.1)) for _ in range(400)]
    assert np.mean([estimate.low <= 0.5 <= estimate.high for estimate in found]) > 0.93


def test_seed_estimates_at_the_edges() -> None:
    means = drawn(12, 40, 0.7, 1)
    assert seed_estimate(means) == estimates(means)[0]
    assert seed_estimate(np.column_stack([means, np.full(40, NAN)])) == estimates(means)[0]
    assert seed_estimate(np.ones((20, 3))) == estimates(np.ones((20, 1)))[0]
    assert seed_estimate(np.full((3, 2), NAN)).n_prompts == 0
    assert seed_estimate([[0.5, 1.0]]).n_prompts == 1


def test_variance_split_recovers_known_components() -> None:
    """Gaussian scores: all components are known, and the moments do not depend on the distribution."""
    rng = np.random.default_rng(13)
    prompts, seeds, orders, repeats = 60, 6, 2, 3
    deviations = {"prompt": 0.3, "seed": 0.1, "answer": 0.15, "repeat": 0.2}
    index = np.indices((prompts, seeds, orders, repeats)).reshape(4, -1)
    cells = index[0] * 1000 + index[1] * 10 + index[2]
    found = []
    for _ in range(300):
        scores = (
            rng.normal(0.5, deviations["prompt"], (prompts, 1, 1, 1))
            + rng.normal(0, deviations["seed"], (1, seeds, 1, 1))
            + rng.normal(0, deviations["answer"], (prompts, seeds, orders, 1))
            + rng.normal(0, deviations["repeat"], (prompts, seeds, orders, repeats))
        )
        split = variance_split(scores.ravel(), index[0], index[1], cells)
        found.append([split.prompts, split.seeds, split.repeats])
    answers = deviations["answer"] ** 2 / (prompts * seeds * orders)
    expected = [
        deviations["prompt"] ** 2 / prompts + answers,
        deviations["seed"] ** 2 / seeds,
        deviations["repeat"] ** 2 / (prompts * seeds * orders * repeats),
    ]
    assert np.mean(found, axis=0) == pytest.approx(expected, rel=0.1)


def test_variance_split_says_what_it_cannot_know() -> None:
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


def test_variance_split_of_a_judge_without_noise_has_none_from_repeats() -> None:
    means = drawn(14, 30, 0.7, 2)
    scores = np.repeat(means.ravel(), 3)
    prompts, seeds = (np.repeat(level.ravel(), 3) for level in np.indices(means.shape))
    split = variance_split(scores, prompts, seeds, np.zeros(scores.size))
    assert split.repeats == 0
    assert split.prompts == pytest.approx(means.mean(axis=1).var(ddof=1) / 30)


# Length


def test_a_judge_of_length_alone_is_brought_back_to_a_half() -> None:
    rng = np.random.default_rng(15)
    trials = np.repeat(["short", "as long", "long"], 2000)
    longer = rng.normal(0, 100, 6000) + np.repeat([-60, 0, 60], 2000)
    scores = (rng.random(6000) < 1 / (1 + np.exp(-2 * np.tanh(longer / longer.std())))).astype(float)
    raw = {trial: scores[trials == trial].mean() for trial in np.unique(trials)}
    rates, coefficient = length_controlled(scores, trials, longer)
    assert raw["long"] > 0.62 > 0.38 > raw["short"]
    assert rates == pytest.approx(dict.fromkeys(raw, 0.5), abs=0.04)
    assert coefficient == pytest.approx(2, abs=0.2)


def test_without_differences_of_length_the_rates_are_the_raw_ones() -> None:
    rng = np.random.default_rng(16)
    trials = np.repeat(["one", "other", "all"], 200)
    scores = np.concatenate([rng.choice([0.0, 0.5, 1.0], 400, p=[0.2, 0.2, 0.6]), np.ones(200)])
    for lengths in (np.zeros(600), np.full(600, 7)):
        rates, coefficient = length_controlled(scores, trials, lengths)
        assert coefficient == 0
        for trial, rate in rates.items():
            assert rate == pytest.approx(scores[trials == trial].mean(), abs=1e-3)


@pytest.mark.parametrize(
    ("scores", "trials", "lengths"), [([], [], []), ([1.0], ["a"], []), ([2.0], ["a"], [1]), ([1.0], ["a"], [NAN])]
)
def test_length_control_refuses(scores: list[float], trials: list[str], lengths: list[float]) -> None:
    with pytest.raises(ValueError, match=r"verdict|as many|within"):
        length_controlled(scores, trials, lengths)


# Bradley-Terry


def tournament(rng: np.random.Generator, strengths: list[float], prompts: int) -> np.ndarray:
    """Two verdicts on every pair of policies and prompt."""
    n = len(strengths)
    wins = np.zeros((prompts, n, n))
    for i in range(n):
        for j in range(i):
            chance = 1 / (1 + np.exp(strengths[j] - strengths[i]))
            wins[:, i, j] = rng.binomial(2, chance, prompts)
            wins[:, j, i] = 2 - wins[:, i, j]
    return wins


def test_strengths_are_those_of_logistic_regression() -> None:
    wins = tournament(np.random.default_rng(17), [0, 0.5, 1.5, -1], 2000)
    strength, low, high = bradley_terry(wins, 0)
    table, n = wins.sum(axis=0), 4
    first, second = np.nonzero(table)
    design = np.eye(n)[first] - np.eye(n)[second]
    # A row and its mirror image: scikit-learn wants both classes, the likelihood is the same twice.
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(
        np.vstack([design, -design])[:, 1:],
        np.repeat([1, 0], len(design)),
        sample_weight=np.tile(table[first, second], 2),
    )
    assert strength[1:] == pytest.approx(model.coef_[0], abs=1e-3)  # apart by the prior
    assert (strength[0], low[0], high[0]) == (0, 0, 0)
    assert ((low <= strength) & (strength <= high)).all()


def test_order_of_policies_and_prompts_does_not_matter() -> None:
    wins = tournament(np.random.default_rng(18), [0, 0.5, 1.5, -1], 60)
    whole = bradley_terry(wins, 0)
    order = np.array([2, 3, 0, 1])
    for turned, found in zip(bradley_terry(wins[:, order][:, :, order], 2), whole, strict=True):
        assert turned == pytest.approx(found[order], abs=1e-8)
    strength, low, high = bradley_terry(wins[::-1], 0)
    assert strength == pytest.approx(whole[0], abs=1e-8)
    assert np.array([low, high]) == pytest.approx(np.array(whole[1:]), abs=0.1)  # other resamples, as many


def test_strengths_relative_to_another_baseline_are_shifted() -> None:
    wins = tournament(np.random.default_rng(19), [0, 0.5, 1.5], 60)
    first, second = bradley_terry(wins, 0)[0], bradley_terry(wins, 2)[0]
    assert first - first[2] == pytest.approx(second, abs=1e-8)


def test_intervals_of_strengths_cover_the_truth() -> None:
    rng, truth = np.random.default_rng(20), [0, 0.5, 1.0]
    found = [bradley_terry(tournament(rng, truth, 83), 0) for _ in range(150)]
    inside = np.mean([(low <= truth) & (truth <= high) for _, low, high in found], axis=0)
    assert inside[1:].mean() == pytest.approx(0.95, abs=0.04)


def test_undefeated_policies_stay_finite_and_say_that_they_have_no_bounds() -> None:
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


def test_kappa_is_scikit_learns_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(22)
    first = rng.choice(OUTCOMES, 200).tolist()
    second = [o if keep else str(rng.choice(OUTCOMES)) for o, keep in zip(first, rng.random(200) < 0.6, strict=True)]
    found = agreement(first, second, np.repeat(np.arange(100), 2))
    assert found.n == 200
    assert found.raw == np.mean([a == b for a, b in zip(first, second, strict=True)])
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert found.kappa_low < found.kappa < found.kappa_high


def test_prompts_are_the_unit_of_agreement() -> None:
    rng = np.random.default_rng(23)
    first, second = rng.choice(OUTCOMES, 50).tolist(), rng.choice(OUTCOMES, 50).tolist()
    once = agreement(first, second, np.arange(50))
    often = agreement(first * 4, second * 4, np.tile(np.arange(50), 4))
    assert (often.kappa_low, often.kappa_high) == pytest.approx((once.kappa_low, once.kappa_high))


def test_agreement_at_the_edges() -> None:
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
def test_the_smallest_difference_is_seen_as_often_as_it_says(prompts: int) -> None:
    difference = smallest_difference(prompts)
    rng = np.random.default_rng(24)
    scores = (rng.random((prompts, 2000)) < 0.5 + difference).astype(float)
    seen = np.mean([estimate.low > 0.5 for estimate in estimates(scores)])
    assert seen == pytest.approx(0.8, abs=0.05)


def test_the_smallest_difference_falls_with_prompts_and_noise() -> None:
    assert smallest_difference(100) == pytest.approx((1.959964 + 0.841621) * 0.05)
    assert smallest_difference(400) == pytest.approx(smallest_difference(100) / 2)
    assert smallest_difference(100, deviation=0.25) == pytest.approx(smallest_difference(100) / 2)
    with pytest.raises(ValueError, match="prompts"):
        smallest_difference(0)
