"""Exact numbers of the synthetic world: expectations of a policy, and the optimum that its chain aims at."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sacpo.planning.plan import Plan, Trial
from sacpo.results.stored_outputs import StoredOutputs
from sacpo.spaces.chains import parse_chain
from sacpo.spaces.evaluation import CRITERIA
from sacpo.spaces.methods import METHODS
from sacpo.synthetic import world

_LAMBDAS = np.concatenate([[0.0], np.geomspace(0.02, 8.0, 60)])
_COLUMNS = ("expected_reward", "expected_safety", "kl_to_sft", "support_mass", "share_of_optimum")


def chain_objectives(chain: str) -> tuple[str, ...]:
    """The objective of each stage of a chain; empty for text that is not one chain, such as a naive merge's."""
    try:
        return tuple(objective for _, objective in parse_chain(chain))
    except ValueError:
        return ()


def objective_weights(trial: Trial) -> dict[str, float] | None:
    """Weights w of the objective sum_o w_o E[o] - KL(pi || pi_SFT) whose optimum the trial's chain aims at.

    Each stage with a KL parameter adds 1 / that parameter to the weight of its objective, whatever the order of the
    objectives (paper, Theorems 1 and 4). Helpfulness with beta, then harmlessness with beta/lambda, thus has the
    weights 1/beta and lambda/beta.

    Returns:
        The weight of each objective of the chain. None if the optimum is not known: for the SFT policy, merges and
        sentinels, and for a chain with a method that has no reference policy.
    """
    if trial.q is not None or not trial.kl_parameters:
        return None
    try:
        stages = parse_chain(trial.chain)
    except ValueError:
        return None
    if len(stages) != len(trial.kl_parameters) or not all(METHODS[method].uses_reference for method, _ in stages):
        return None
    weights: dict[str, float] = {}
    for (_, objective), kl_parameter in zip(stages, trial.kl_parameters, strict=True):
        weights[objective] = weights.get(objective, 0.0) + 1.0 / kl_parameter
    return weights


def exact_columns(trial: Trial, outputs: StoredOutputs) -> dict[str, float]:
    """The exact numbers of a trial's policy; empty outside the synthetic world."""
    if not outputs.plan.space.synthetic:
        return {}
    policy = outputs.probabilities(trial.probabilities) if trial.probabilities is not None else None
    sft = outputs.sft_probabilities
    if policy is None or sft is None:
        return dict.fromkeys(_COLUMNS, float("nan"))
    return {**vars(world.measure(policy, sft)), "share_of_optimum": _share_of_optimum(trial, policy, sft)}


def _share_of_optimum(trial: Trial, policy: world.Array, sft: world.Array) -> float:
    weights = objective_weights(trial)
    if weights is None or not weights.keys() <= set(CRITERIA):  # the world has gold values for these objectives only
        return float("nan")
    reward, safety = (weights.get(criterion, 0.0) for criterion in CRITERIA)
    return world.share_of_optimum(policy, sft, reward, safety)


def exact_frontier(plan: Plan, outputs: StoredOutputs) -> pd.DataFrame | None:
    """E[r], E[g] and KL of the exact optimum over a range of lambda, for each beta of a chain that starts with r.

    Returns:
        One row for each beta and lambda; None outside the synthetic world, or if no chain starts with helpfulness.
    """
    sft = outputs.sft_probabilities
    if sft is None:
        return None
    starts_with_r = [t for t in plan.trials if chain_objectives(t.chain)[:1] == CRITERIA[:1]]
    rows = []
    for beta in sorted({trial.beta for trial in starts_with_r if trial.beta is not None}):
        for lagrangian in _LAMBDAS:
            exact = world.measure(world.optimum(sft, 1 / beta, lagrangian / beta), sft)
            rows.append({"beta": beta, "lambda": float(lagrangian), **vars(exact)})
    return pd.DataFrame(rows).drop(columns="support_mass") if rows else None
