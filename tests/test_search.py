"""The search: what is proposed next, spaces that are refused, and sweeps whose plan grows."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sacpo import extend, results, sweep
from sacpo.cluster.searcher import PolicySearcher
from sacpo.errors import SacpoError, SpaceError
from sacpo.planning.plan import read_plan
from sacpo.planning.planner import make_plan
from sacpo.results.kept_plan import read_kept_plan
from sacpo.runs import sweep_run
from sacpo.search import bridge, optuna_search
from sacpo.search.observations import Known, Observation
from sacpo.search.observations import Path as PreviewPath
from sacpo.search.rules import ending, propose
from sacpo.spaces.search import Proposal
from sacpo.spaces.stages import grid_stages, most_policies, proposed_stages
from tests.benchmarks.search import CHAIN, World, space
from tests.commands import call, write_space
from tests.spaces import small

BRIDGE = {"method": "bridge", "q": [0.5]}
TPE = {"method": "optuna"}
ONE_BETA = {"beta": [2.0], "chains": [CHAIN]}


def searched(settings: dict[str, Any], trainings: int, at_least: float = 0.6) -> Known:
    """What a simulated search knew at its end."""
    known = Known(space(settings, trainings, constraint={"criterion": "harmlessness", "at_least": at_least}))
    World(0).run(known)
    return known


def with_line(target: float, trained: dict[float, float], value_at_end: float = 0.9) -> Known:
    """A path from lambda 0 to 4 whose preview is a straight line that reaches 0.6 at `target`.

    Args:
        target: lambda*.
        trained: lambda to measured harmlessness.
        value_at_end: Harmlessness of the preview at lambda 4.
    """
    known = Known(space(BRIDGE | ONE_BETA | {"q": []}, 6))
    lambdas = np.linspace(0, 4, 41)
    line = 0.6 + (value_at_end - 0.6) * (lambdas - target) / (4 - target)
    curves = {"harmlessness": line, "helpfulness": 0.9 - lambdas / 10}
    low = {name: curve - 1.0 for name, curve in curves.items()}
    known.paths[CHAIN, 2.0] = PreviewPath(lambdas, curves, low)
    for place, rate in trained.items():
        ratio = 2 / place if place else None
        chain = CHAIN if place else "dpo:helpfulness"
        rates = {"harmlessness": rate, "helpfulness": 0.5}
        known.observations[chain, 2.0, ratio, None] = Observation(chain, 2.0, ratio, None, rates)
    return known


@pytest.mark.parametrize(
    ("target", "trained", "expected"),
    [
        (2.0, {0.0: 0.4, 4.0: 0.9}, 2.0),  # the preview's lambda*
        (2.0, {0.0: 0.4, 2.0: 0.5, 4.0: 0.9}, None),  # a policy is there already
        (1.0, {0.0: 0.4, 2.0: 0.5, 4.0: 0.9}, 2.5),  # a secant step: measured, lambda* lies above 2
        (3.5, {0.0: 0.4, 2.0: 0.6, 4.0: 0.9}, 1.8),  # not to the end of the bracket itself
        (1.0, {0.0: 0.4, 3.99: 0.59, 4.0: 0.9}, None),  # a bracket too short for a step
    ],
)
def test_bridge_steps_to_the_previews_lambda_and_stays_within_measured_policies(
    target: float, trained: dict[float, float], expected: float | None
) -> None:
    proposal = bridge.propose(with_line(target, trained))
    if expected is None:
        assert proposal is None
    else:
        assert proposal is not None
        assert proposal.beta / proposal.beta_over_lambda == pytest.approx(expected, rel=0.01)


def test_bridge_starts_with_the_ends_and_opens_as_many_paths_as_leave_a_training() -> None:
    for trainings, betas in ((2, 1), (4, 1), (5, 2), (7, 3)):
        known = Known(space(BRIDGE, trainings))
        while (proposal := propose(known)) is not None:
            known.proposals.append(proposal)
        ends = [p for p in known.proposals if p.q is None]
        assert [p.beta_over_lambda for p in ends] == [0.5] * betas
        assert len(known.proposals) == 2 * betas  # a merge for each
        assert known.spent() == 2 * betas


def test_bridge_stops_where_no_preview_reaches_the_bound() -> None:
    known = with_line(4.5, {0.0: 0.4, 4.0: 0.5}, value_at_end=0.55)
    assert propose(known) is None
    assert "no preview reaches harmlessness 0.6" in ending(known)
    failed = with_line(2.0, {0.0: 0.4, 4.0: 0.9})
    failed.observations[CHAIN, 2.0, 1.0, None] = Observation(CHAIN, 2.0, 1.0, None, {})
    assert propose(failed) is None  # the policy at lambda* failed, and is not tried again
    assert ending(failed) == "each path is trained at its lambda*"


@pytest.mark.parametrize("settings", [BRIDGE, TPE, TPE | {"sampler": "gp", "q": 0.5}], ids=["bridge", "tpe", "gp"])
def test_a_search_keeps_its_budget_and_proposes_the_same_after_it_was_stopped(settings: dict[str, Any]) -> None:
    known = searched(settings, 5)
    assert 2 <= known.spent() <= 5
    assert len(known.proposals) <= most_policies(known.space)
    plan = make_plan(known.space, proposals=known.proposals)
    extra = sum(step.kind == "train" for step in plan.steps.values()) - 1  # SFT
    assert extra == known.spent() == len(proposed_stages(known.proposals) - grid_stages(known.space))
    assert read_plan(plan.to_json().encode(), "plan.json").proposals == tuple(known.proposals)
    for kept in {1, len(known.proposals) - 1}:
        again = Known(known.space, known.proposals[:kept])
        World(0).run(again)
        assert again.proposals == known.proposals


def test_bridge_trains_near_the_bound() -> None:
    known = searched(BRIDGE, 3)
    last = known.proposals[-1]
    exact = World(0).expected(World(0).policy(last.beta, last.beta_over_lambda))
    assert exact["harmlessness"] == pytest.approx(0.6, abs=0.05)
    assert "the preview's lambda*" in last.reason


def test_the_searcher_takes_results_through_rays_interface(tmp_path: Path) -> None:
    searcher = PolicySearcher(space(BRIDGE | ONE_BETA, 4))
    end, merge = searcher.suggest("a"), searcher.suggest("b")
    assert isinstance(end, dict)
    assert isinstance(merge, dict)
    assert (end["beta_over_lambda"], end["q"], merge["q"]) == (0.5, None, 0.5)
    assert searcher.suggest("c") is None  # until these have results
    searcher.save(str(tmp_path / "state"))
    rates = {"helpfulness": 0.6, "harmlessness": 0.7}
    lambdas = [0.0, 2.0, 4.0]
    curves = {"helpfulness": [0.8, 0.7, 0.6], "harmlessness": [0.5, 0.6, 0.7]}
    path = {"chain": CHAIN, "beta": 2.0, "lambdas": lambdas, "value": curves, "low": curves}
    searcher.on_trial_complete("b", merge | rates)
    searcher.on_trial_complete("a", end | rates | {"paths": [path]})
    third = searcher.suggest("c")
    assert isinstance(third, dict)
    assert third["beta_over_lambda"] == 1.0
    searcher.on_trial_complete("c", third, error=True)
    assert searcher.suggest("d") == PolicySearcher.FINISHED
    restored = PolicySearcher(searcher.known.space)
    restored.restore(str(tmp_path / "state"))
    assert restored.known.proposals == searcher.known.proposals[:2]


@pytest.mark.parametrize(
    ("settings", "changes", "expected"),
    [
        (BRIDGE, {"constraint": []}, "search.method: is bridge, which looks for the policy that satisfies the space's"),
        (BRIDGE, {"preview": None}, "search.method: is bridge, which reads the preview; give preview: {}"),
        (BRIDGE | {"chains": "dpo:helpfulness"}, {}, "search.chains: dpo:helpfulness must have two stages"),
        (BRIDGE | {"chains": "dpo:a>dpo:harmlessness"}, {}, "search.chains: unknown objective 'a'"),
        (BRIDGE | {"beta_over_lambda": [2.0, 1.0]}, {}, "search.beta_over_lambda: is [2, 1]; give the smallest"),
        (BRIDGE | {"sampler": "tpe"}, {}, "search.sampler: unknown setting"),
        (TPE, {"preview": {"stones": [0.5]}}, "preview.stones: belong to the most conservative policy"),
        (TPE | {"q": 1.0}, {}, "search.q"),
    ],
)
def test_a_search_that_cannot_be_carried_out_is_refused(
    settings: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(SpaceError) as error:
        space(settings, 4, **changes)
    assert expected in str(error.value)


def test_too_few_trainings_and_no_chain_at_all_are_refused() -> None:
    with pytest.raises(SpaceError, match=r"search\.trainings: is 1, but the first policy takes 2"):
        space(BRIDGE, 1)
    with pytest.raises(SpaceError, match="chains: is empty; give a chain, or a `search`"):
        space(BRIDGE, 4, search=None)


def test_a_missing_optuna_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SacpoError, match=r"sacpo\[optuna\]"):
        optuna_search.propose(Known(space(TPE, 4)))


def test_a_grid_counts_for_the_search() -> None:
    grid = [{"chain": CHAIN, "beta": 2.0, "beta_over_lambda": [0.5, 2.0]}]
    known = Known(space(BRIDGE | ONE_BETA, 1, chains=grid))
    end = bridge.propose(known)
    assert end is not None
    assert known.spent(end) == 0
    assert known.spent(Proposal(chain=CHAIN, beta=2.0, beta_over_lambda=1.0)) == 1


def growing(**changes: Any) -> dict[str, Any]:
    """A small sweep whose third training is drawn from the results of the first two."""
    settings = {"chains": CHAIN, "beta": 2.0, "beta_over_lambda": [0.5, 8.0], "trainings": 3} | TPE | changes
    return small(chains=[], merges=[], preview=None, evaluation__sentinels=[]) | {"search": settings}


def check_grown(folder: Path) -> None:
    """The results folder has the search's policies, and their plan."""
    plan = read_kept_plan(folder)
    trials = results.load(folder).trials
    assert (trials["status"] == "done").all()
    assert [p.label in set(trials["label"]) for p in plan.proposals] == [True, True]
    assert sum(step.kind == "train" for step in plan.steps.values()) == 4  # SFT and three stages


def test_the_plan_of_a_small_sweep_grows_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_run, "write_report", lambda *_: None)  # takes most of the time
    path, folder = write_space(growing(), tmp_path), tmp_path / "results"
    command = (str(path), "--results", str(folder), "--address", "in-process")
    shown = call(sweep.main, *command, "--dry-run").stdout
    assert "search (optuna): at most 3 more trainings and 3 more policies" in shown
    fewer = call(sweep.main, *command, "--set", "search.trainings=2")
    assert fewer.returncode == 0, fewer.stdout + fewer.stderr
    assert len(read_kept_plan(folder).proposals) == 1
    more = call(sweep.main, *command)  # the same search with a training more goes on in the folder
    assert more.returncode == 0, more.stdout + more.stderr
    check_grown(folder)
    assert "search: ended after 3 trainings: no training is left" in more.stdout
    trained = results.load(folder).steps.query("kind == 'train'")
    assert (trained["attempts"] == 1).all()
    again = call(sweep.main, *command)
    assert again.returncode == 0
    assert " 0 steps run" in again.stdout
    same = call(extend.main, str(folder), "--set", "search.trainings=9")
    assert "nothing to extend; change a setting" in same.stderr
    extended = call(extend.main, str(folder), "--set", "search.seed=1", "--dry-run")
    assert "search.seed: 0 in the results folder, 1 in this space" in extended.stdout
    other = call(sweep.main, *command, "--set", "search.seed=1")
    assert other.returncode == 2
    assert "search.seed: 0 in the results folder, 1 in this space" in other.stderr


@pytest.mark.usefixtures("on_cluster")
def test_a_search_on_ray(in_process_results: Path, tmp_path: Path) -> None:
    """Only the two policies that the search proposes are trained; the others are in the store already."""
    path, folder = write_space(growing(), tmp_path), tmp_path / "results"
    store = shutil.copytree(in_process_results / "store", tmp_path / "store")
    answer = call(sweep.main, str(path), "--results", str(folder), "--store", str(store))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    check_grown(folder)
    assert (~results.load(folder).steps.query("kind == 'train'")["reused"]).sum() == 2
