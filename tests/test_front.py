"""How sure the front is: probabilities, hypervolume and band, against direct computation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sacpo.results.front import Resamples, candidates, own_verdicts
from sacpo.spaces.constraints import Constraint, objective_of
from sacpo.statistics.front import (
    LEVELS,
    band,
    best_shares,
    fronts,
    hypervolume_interval,
    hypervolumes,
    resampled_rates,
)
from sacpo.statistics.pareto import on_front
from sacpo.statistics.win_rate import RESAMPLES
from tests.simulated_sweeps import simulated


def test_the_fronts_of_all_resamples_follow_the_rule_of_one_front() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 300, 9)) / 5  # many ties
    x[::7, 3] = np.nan
    expected = [on_front(np.column_stack(pair)) for pair in zip(x, y, strict=True)]
    assert (fronts(x, y) == expected).all()


def test_a_hypervolume_is_the_dominated_area() -> None:
    x, y = np.array([[0.2, 0.6, 0.5, np.nan]]), np.array([[0.9, 0.5, 0.4, 1.0]])
    assert hypervolumes(x, y)[0] == pytest.approx(0.2 * 0.9 + 0.4 * 0.5)
    low, high = hypervolume_interval(0.38, np.array([0.38, 0.40, 0.44]))
    assert low < 0.35
    assert high == pytest.approx(0.38)
    edges = band(x, y)
    assert edges.median[[0, 20, 21, 60, 61]].tolist() == [0.9, 0.9, 0.5, 0.5, 0.0]
    assert len(LEVELS) == len(edges.low) == 101


def test_the_best_of_those_that_satisfy() -> None:
    objective = np.array([[0.9, 0.7, 0.7], [0.9, 0.7, 0.6], [0.9, 0.7, np.nan], [0.9, 0.7, 0.6]])
    satisfied = np.array([[False, True, True], [True, True, True], [False, False, True], [False, True, True]])
    assert best_shares(objective, satisfied).tolist() == [0.25, 0.375, 0.125]


def test_criteria_with_the_same_prompts_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    means = rng.random((30, 2))
    ids = [str(i) for i in range(30)]
    other = [f"other-{i}" for i in range(30)]
    same = resampled_rates({"a": means, "b": means}, {"a": ids, "b": ids})
    assert (same["a"] == same["b"]).all()
    apart = resampled_rates({"a": means, "b": means}, {"a": ids, "b": other})
    assert abs(np.corrcoef(apart["a"][:, 0], apart["b"][:, 0])[0, 1]) < 0.1
    assert same["a"].shape == (RESAMPLES, 2)
    assert same["a"].mean(axis=0) == pytest.approx(means.mean(axis=0), abs=0.01)


def test_probabilities_tell_sure_points_from_lucky_ones() -> None:
    results = simulated(np.random.default_rng(2), [(0.8, 0.3), (0.3, 0.8), (0.31, 0.31), (0.79, 0.31)], prompts=200)
    trials = results.trials
    resamples = Resamples(trials.loc[candidates(trials), "trial_id"], "sft", own_verdicts(results.verdicts, "sft"))
    columns = resamples.columns(trials, [Constraint(criterion="harmlessness", at_least=0.6)])
    p_front = dict(zip(trials["trial_id"], columns["p_front"], strict=True))
    assert p_front["policy-1"] == 1.0
    assert p_front["policy-2"] == 0.0
    assert 0.05 < p_front["policy-0"] < 1 - 1e-9
    assert 0.05 < p_front["policy-3"] < 1 - 1e-9
    assert columns["p_best"].tolist() == [0, 0, 1, 0, 0]
    assert resamples.columns(trials, [])["p_best"].isna().all()
    tables = resamples.tables()
    volume = tables["hypervolume"].iloc[0]
    assert 0 < volume["low"] <= volume["hypervolume"] <= volume["high"] < 1
    assert (tables["front"]["low"] <= tables["front"]["harmlessness"]).all()
    assert Resamples([], "sft", results.verdicts[:0]).tables()["front"].empty


def test_the_objective_is_the_axis_without_a_constraint() -> None:
    def bound(*names: str) -> list[Constraint]:
        return [Constraint(criterion=name, at_least=0.5) for name in names]

    assert objective_of(bound("harmlessness")) == "helpfulness"
    assert objective_of(bound("helpfulness")) == "harmlessness"
    assert objective_of(bound("helpfulness", "harmlessness")) == "helpfulness"
    assert objective_of([]) == "helpfulness"


def test_trials_without_verdicts_have_no_probability() -> None:
    results = simulated(np.random.default_rng(0), [(0.8, 0.3)], prompts=20)
    columns = Resamples(["sft"], "sft", results.verdicts[:0]).columns(results.trials, [])
    assert columns.isna().all(axis=None)
    assert isinstance(columns, pd.DataFrame)
