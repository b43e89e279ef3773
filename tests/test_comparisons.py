"""The tables that compare trials, on simulated verdicts with known win rates."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.results.comparisons import compare
from sacpo.results.coverage import coverage_problem
from tests.spaces import space

PROMPTS = 60


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(space(seeds=[0, 1, 2], merges=[], evaluation__sentinels=[]))


def simulate(
    plan: Plan, rates: dict[str, float], extra_tokens: dict[str, int]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Tables of trials, answers and verdicts, with two repeats per presentation order.

    Args:
        plan: The plan with the trials.
        rates: True win rate by label without seed; 0.5 for other labels.
        extra_tokens: Tokens by label that are added to the answers.
    """
    rng = np.random.default_rng(0)
    rows = []
    for trial in plan.trials:
        settings = {"label": trial.label, "method": trial.method, "chain": trial.chain, "seed": trial.seed}
        rows.append({"trial_id": trial.trial_id, "kl_parameters": str(trial.kl_parameters), "q": float("nan"),
                     "combination": "", "status": "done", **settings})  # fmt: skip
    keys = [(t, c, f"p{i}") for t in rows for c in ("helpfulness", "harmlessness") for i in range(PROMPTS)]
    answers = [{"trial_id": t["trial_id"], "criterion": c, "prompt_id": p, "sample": 0,
                "tokens": 50 + extra_tokens.get(t["label"], 0) + int(rng.integers(9))} for t, c, p in keys]  # fmt: skip
    easiness = rng.normal(0, 1, PROMPTS)
    verdicts = []
    for t, c, p in keys:
        rate = rates.get(t["label"].partition(" seed")[0], 0.5)
        chance = 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + easiness[int(p[1:])])))
        for order in ("policy_first", "baseline_first"):
            for repeat in range(2):
                won = rng.random() < chance
                verdicts.append({"trial_id": t["trial_id"], "baseline_id": plan.baseline.trial_id, "criterion": c,
                                 "prompt_id": p, "category": "ab"[int(p[1:]) % 2], "sample": 0, "order": order,
                                 "repeat": repeat, "outcome": "win" if won else "loss", "panel": ""})  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(answers), pd.DataFrame(verdicts)


def test_tables_over_seeds_categories_and_differences(plan: Plan) -> None:
    first, second = "dpo:helpfulness@2", "dpo:helpfulness@2>dpo:harmlessness@2"
    trials, answers, verdicts = simulate(plan, {first: 0.8, second: 0.4}, {f"{first} seed 0": 40})
    verdicts = verdicts[verdicts["trial_id"] != plan.baseline.trial_id]
    tables = compare(plan, trials, answers, verdicts)
    labels = trials.set_index("trial_id")["label"]
    seeds = tables["seeds"]
    assert len(seeds) == 2 * 2
    assert (seeds["seeds"] == 3).all()
    assert (seeds["low"] < seeds["win_rate"]).all()
    assert (seeds["win_rate"] < seeds["high"]).all()
    assert (seeds["variance_prompts"] > seeds["variance_repeats"]).all()  # the prompts' difficulty varies widely
    differences = tables["differences"]
    first_setting = differences["trial_id"].map(labels).str.partition(" seed")[0]
    second_setting = differences["other_id"].map(labels).str.partition(" seed")[0]
    equal_rates = first_setting == second_setting
    excludes_zero = (differences["low"] > 0) | (differences["high"] < 0)
    assert excludes_zero[~equal_rates].all()
    assert not excludes_zero[equal_rates].any()
    assert set(tables["categories"]["category"]) == {"a", "b"}
    length = tables["length"].assign(label=tables["length"]["trial_id"].map(labels)).set_index(["criterion", "label"])
    assert length.loc[("helpfulness", f"{first} seed 0"), "mean_tokens"] > 85
    assert tables["panel"].empty
    assert tables["agreement"].empty
    assert tables["ranking"].empty


def test_trials_that_failed_are_in_no_table(plan: Plan) -> None:
    trials, answers, verdicts = simulate(plan, {}, {})
    trials.loc[1:, "status"] = "failed"
    assert all(table.empty for table in compare(plan, trials, answers, verdicts).values())


@pytest.mark.parametrize(
    ("refused", "is_imported", "way_out"),
    [
        ([True, True], False, "refused all missing ones for content or length.*take another judge or lower"),
        ([True, False], False, "run the same command again, which asks for the missing ones"),
        ([False, False], True, "have all answers .* annotated, and import that file"),
    ],
)
def test_the_way_out_of_missing_verdicts_is_one_that_can_help(
    refused: list[bool], is_imported: bool, way_out: str
) -> None:
    raw = ["HTTP 400, request 1", "HTTP 400, request 2", "A"]
    verdicts = pd.DataFrame({"outcome": ["unavailable", "unavailable", "win"], "raw": raw, "refused": [*refused, 0]})
    with_reason = rf"only 33\.3%.*{way_out}.*2 of 2 missing verdicts are unavailable: HTTP 400, request"
    assert re.search(with_reason, coverage_problem("helpfulness", verdicts, 0.9, "picky", is_imported))
    assert coverage_problem("helpfulness", verdicts, 0.3) == ""
