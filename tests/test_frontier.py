"""Single win rates and the front, compared with closed forms."""

import numpy as np
import pytest

from sacpo.statistics.pareto import on_front
from sacpo.statistics.win_rate import win_rate

RNG = np.random.default_rng(7)


def _random_scores(n: int, mean: float) -> np.ndarray:
    return (np.random.default_rng(3).random(n) < mean).astype(float)


def test_win_rate_is_the_mean_over_prompts_not_over_verdicts() -> None:
    # Prompt a: (1 + 1 + 0.5 + 0.5) / 4 = 0.75; prompt b: 0. Pooled verdicts would give 0.6.
    estimate = win_rate([1.0, 1.0, 0.5, 0.5, 0.0], ["a", "a", "a", "a", "b"])
    assert estimate.value == 0.375
    assert estimate.n_prompts == 2


@pytest.mark.parametrize("n", [2, 3, 20, 129])
@pytest.mark.parametrize("mean", [0.05, 0.5, 0.9])
def test_interval_contains_the_value_within_the_unit_range(n: int, mean: float) -> None:
    scores = _random_scores(n, mean)
    scores[0] = 1.0 - scores[-1]
    estimate = win_rate(scores, np.arange(n))
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate.low < estimate.high


def test_interval_has_the_width_of_the_standard_error() -> None:
    scores = np.repeat([1.0, 0.0], 200)
    estimate = win_rate(scores, np.arange(400))
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(400), rel=0.1)


def test_repeating_verdicts_within_prompts_does_not_narrow_the_interval() -> None:
    scores, prompts = _random_scores(40, 0.7), np.arange(40)
    assert win_rate(np.repeat(scores, 6), np.repeat(prompts, 6)) == win_rate(scores, prompts)


def test_order_of_verdicts_does_not_matter() -> None:
    scores, prompts = _random_scores(90, 0.4), np.repeat([f"prompt {i}" for i in range(30)], 3)
    order = RNG.permutation(90)
    assert win_rate(scores[order], prompts[order]) == win_rate(scores, prompts)


def test_all_wins_have_wilsons_bounds() -> None:
    estimate = win_rate(np.ones(20), np.repeat(np.arange(10), 2))
    assert estimate.value == estimate.high == 1.0
    assert estimate.low == pytest.approx(10 / (10 + 1.959964**2))  # Wilson's lower bound when all n agree


def test_one_prompt_has_a_wide_interval() -> None:
    estimate = win_rate([1.0, 0.0], ["a", "a"])
    assert (estimate.value, estimate.n_prompts) == (0.5, 1)
    assert estimate.high - estimate.low > 0.8


@pytest.mark.parametrize(
    ("scores", "prompts"), [([], []), ([1.0], ["a", "b"]), ([1.7], ["a"]), ([float("nan")], ["a"])]
)
def test_win_rate_refuses(scores: list[float], prompts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"score|prompts|verdict"):
        win_rate(scores, prompts)


def test_front_of_known_points() -> None:
    points = [(1, 3), (2, 2), (3, 1), (1, 2), (2, 2), (3, 0), (float("nan"), 9), (0, float("nan"))]
    assert on_front(points).tolist() == [True, True, True, False, True, False, False, False]
    assert on_front([]).tolist() == []


def test_front_matches_its_definition_in_any_order() -> None:
    points = RNG.integers(0, 6, size=(40, 2)).astype(float)
    expected = [not any(bool(np.all(q >= p) and np.any(q > p)) for q in points) for p in points]
    assert on_front(points).tolist() == expected
    order = RNG.permutation(40)
    assert (on_front(points[order]) == on_front(points)[order]).all()


def test_front_refuses_points_outside_the_plane() -> None:
    with pytest.raises(ValueError, match="shape"):
        on_front([(1.0, 2.0, 3.0)])
