"""Win rates at equal length, compared with a simulation with known truth and with plainer methods."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from sacpo.statistics.length import length_controlled
from sacpo.statistics.win_rate import win_rate

NAN = float("nan")


def simulated_verdicts(
    rng: np.random.Generator,
    trials: int,
    prompts: int,
    coefficient: float = 1.0,
    confounding: float = 0.0,
    on_these_prompts: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scores, trials, prompts and length differences of policies of several lengths; the true rates at equal length.

    The true rates are the means over all prompts that there could be, or over these alone.

    Prompts differ in difficulty by a standard deviation of 1.5 in log odds; `confounding` is the additional length that
    one unit of it brings. Each pair of answers is judged twice.
    """
    strength, difficulty = rng.normal(0, 0.7, trials), rng.normal(0, 1.5, prompts)
    trial, prompt = (np.repeat(level.ravel(), 2) for level in np.indices((trials, prompts)))
    lengths = np.repeat(rng.normal(0, 100, trials * prompts), 2) + rng.normal(0, 60, trials)[trial]
    lengths += confounding * difficulty[prompt]
    logits = strength[trial] + difficulty[prompt] + coefficient * np.tanh(lengths / lengths.std())
    scores = (rng.random(trial.size) < expit(logits)).astype(float)
    truth = expit(strength[:, None] + (difficulty if on_these_prompts else rng.normal(0, 1.5, 100_000))).mean(axis=1)
    return scores, trial, prompt, lengths, truth


def at_the_average_prompt(scores: np.ndarray, trials: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rates at equal length by logistic regression without the difficulty of prompts."""
    design = np.column_stack([np.eye(trials.max() + 1)[trials], np.tanh(lengths / lengths.std())])
    model = LogisticRegression(C=100, fit_intercept=False).fit(design, scores)
    return np.asarray(expit(model.coef_[0][:-1]))


def test_rates_at_equal_length_are_nearer_to_the_truth_than_plain_ones_and_their_intervals_cover_it() -> None:
    rng, errors, covered = np.random.default_rng(15), [], []
    for _ in range(6):
        scores, trials, prompts, lengths, truth = simulated_verdicts(rng, 5, 200, coefficient=1.5, confounding=30)
        result = length_controlled(scores, trials, prompts, lengths)
        rates = [result.rates[str(i)] for i in range(5)]
        raw = [scores[trials == i].mean() for i in range(5)]
        averages = at_the_average_prompt(scores, trials, lengths)
        errors.append([[rate.value for rate in rates] - truth, raw - truth, averages - truth])
        covered += [rate.low <= value <= rate.high for rate, value in zip(rates, truth, strict=True)]
        assert result.coefficient == pytest.approx(1.7, abs=0.6)  # the ridge leaves a part of the confounding
        assert result.reason == ""
    controlled, raw_error, average_error = np.sqrt((np.array(errors) ** 2).mean(axis=(0, 2)))
    assert controlled < 0.05
    assert controlled < 0.8 * raw_error
    assert controlled < 0.8 * average_error
    assert np.mean(covered) > 0.8


def test_with_the_prompts_of_alpacaeval_the_rates_are_a_point_from_the_truth_and_plainer_ones_several() -> None:
    simulated = simulated_verdicts(np.random.default_rng(19), 12, 805, confounding=30, on_these_prompts=True)
    scores, trials, prompts, lengths, truth = simulated
    rates = length_controlled(scores, trials, prompts, lengths).rates
    raw = [scores[trials == i].mean() for i in range(12)]
    values = [[rates[str(i)].value for i in range(12)], raw, at_the_average_prompt(scores, trials, lengths)]
    controlled, raw_error, average_error = np.abs(np.array(values) - truth).mean(axis=1)
    assert controlled < 0.015
    assert raw_error > 0.03
    assert average_error > 0.03


def test_the_mean_over_prompts_is_not_the_rate_at_the_average_prompt() -> None:
    """With prompts of very different difficulty and one length, the rate at equal length is the raw rate."""
    scores, trials, prompts, lengths, _ = simulated_verdicts(np.random.default_rng(16), 3, 300, coefficient=0)
    for constant in (0.0, 7.0):
        result = length_controlled(scores, trials, prompts, np.full(lengths.size, constant))
        assert result.coefficient == 0
        for i in range(3):
            assert result.rates[str(i)].value == pytest.approx(scores[trials == i].mean(), abs=2e-3)
            plain = win_rate(scores[trials == i], prompts[trials == i])
            assert result.rates[str(i)].low == pytest.approx(plain.low, abs=0.02)
            assert result.rates[str(i)].high == pytest.approx(plain.high, abs=0.02)


def test_scores_between_0_and_1_have_rates_at_equal_length_too() -> None:
    scores, trials, prompts, lengths, _ = simulated_verdicts(np.random.default_rng(17), 3, 60)
    hard = length_controlled(scores, trials, prompts, lengths)
    soft = length_controlled(0.25 + scores / 2, trials, prompts, lengths)
    for name, rate in soft.rates.items():
        assert rate.high - rate.low < hard.rates[name].high - hard.rates[name].low
        assert rate.value == pytest.approx(0.25 + hard.rates[name].value / 2, abs=0.05)


@pytest.mark.parametrize(("trials", "prompts"), [(1, 100), (5, 29)])
def test_too_few_trials_or_prompts_give_no_rate_and_a_reason(trials: int, prompts: int) -> None:
    *data, _ = simulated_verdicts(np.random.default_rng(18), trials, prompts)
    result = length_controlled(*data)
    assert result.rates == {}
    assert np.isnan(result.coefficient)
    assert f"{trials} trial(s) on {prompts} prompts" in result.reason


@pytest.mark.parametrize(
    ("scores", "trials", "lengths"), [([], [], []), ([1.0], ["a"], []), ([2.0], ["a"], [1]), ([1.0], ["a"], [NAN])]
)
def test_length_control_refuses(scores: list[float], trials: list[str], lengths: list[float]) -> None:
    with pytest.raises(ValueError, match=r"verdict|same length|within"):
        length_controlled(scores, trials, ["p"] * len(scores), lengths)
