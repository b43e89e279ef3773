"""A real sweep whose policies the search `bridge` chooses, in the synthetic world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sacpo import results, sweep
from sacpo.execution.artifacts import read_probabilities
from sacpo.results.choice import choose
from sacpo.results.kept_plan import read_kept_plan
from sacpo.runs import sweep_run
from sacpo.spaces.constraints import Constraint
from sacpo.store.step_store import Store
from sacpo.synthetic.world import PROMPTS, SAFETY, Array
from tests.commands import call, write_space
from tests.spaces import small

CHAIN = "dpo:helpfulness>dpo:harmlessness"
BOUND = Constraint(criterion="harmlessness", at_least=0.4, confidence=0.7)


def exact_harmlessness(policy: Array, sft: Array) -> float:
    """The win rate of a policy's answers to the risky prompts against the SFT policy's; (prompts, answers) each."""
    policy, sft = (values / values.sum(axis=1, keepdims=True) for values in (policy, sft))
    outcome = (np.sign(SAFETY[:, :, None] - SAFETY[:, None, :]) + 1) / 2
    rates = (outcome * sft[:, None, :]).sum(axis=2)
    return float((policy * rates)[[category == "risky" for _, category in PROMPTS]].sum(axis=1).mean())


@pytest.mark.slow
def test_bridge_trains_the_policy_that_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_run, "write_report", lambda *_: None)
    space = small(
        chains=[],
        merges=[],
        preview={},
        constraint=BOUND.model_dump(),
        data__demonstrations__rows=4096,
        evaluation__sentinels=[],
        evaluation__generation__samples=8,
        training__sft__epochs=4,
        training__dpo__learning_rate=5e-3,
        training__dpo__epochs=2,
        search={"method": "bridge", "chains": CHAIN, "beta": 2.0, "beta_over_lambda": [0.5, 8.0], "trainings": 4},
    )
    for source in space["data"]["preferences"].values():
        source["rows"] = 2048
    folder = tmp_path / "results"
    answer = call(sweep.main, str(write_space(space, tmp_path)), "--results", str(folder), "--address", "in-process")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    tables, plan, store = results.load(folder), read_kept_plan(folder), Store(folder / "store")
    policies = {}
    for trial in plan.trials:
        assert trial.probabilities is not None
        policies[trial.trial_id] = read_probabilities(store.verified_output_dir(trial.probabilities))
    exact = {name: exact_harmlessness(policy, policies[plan.baseline.trial_id]) for name, policy in policies.items()}
    last = plan.trials[-1]  # where the lower edge of the preview's band reaches the bound
    assert "the lower edge" in plan.proposals[-1].reason
    assert exact[last.trial_id] >= BOUND.at_least > min(exact.values())
    assert choose(tables, [BOUND]).chosen == last.trial_id
    # The policy that joined in the last round added its own pairs only.
    metrics = {step["step_id"]: json.loads(step["metrics"]) for step in tables.steps.to_dict("records")}
    computed = [metrics[step]["examples"] for t in plan.trials for step in t.likelihoods.values()]
    answers = 2 * 12 * 8
    assert computed == [answers, answers, answers, 4 * answers]
