"""The tables over all trials together, on verdicts that are drawn here with known truths."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.results.comparisons import compare
from tests.spaces import space

PROMPTS = 60


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(space(seeds=[0, 1, 2], merges=[], evaluation__sentinels=[]))


def drawn(
    plan: Plan, rates: dict[str, float], longer: dict[str, int]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Trials, answers and verdicts: each trial wins with the rate of its label's first stage, two repeats an order."""
    rng = np.random.default_rng(0)
    rows = []
    for trial in plan.trials:
        same = {"label": trial.label, "method": trial.method, "chain": trial.chain, "seed": trial.seed}
        rows.append({"trial_id": trial.trial_id, "kl_parameters": str(trial.kl_parameters), "q": float("nan"),
                     "status": "done", **same})  # fmt: skip
    keys = [(t, c, f"p{i}") for t in rows for c in ("helpfulness", "harmlessness") for i in range(PROMPTS)]
    answers = [{"trial_id": t["trial_id"], "criterion": c, "prompt_id": p, "sample": 0,
                "tokens": 50 + longer.get(t["label"], 0) + int(rng.integers(9))} for t, c, p in keys]  # fmt: skip
    easy = rng.normal(0, 1, PROMPTS)
    verdicts = []
    for t, c, p in keys:
        rate = rates.get(t["label"].partition(" seed")[0], 0.5)
        chance = 1 / (1 + np.exp(-(np.log(rate / (1 - rate)) + easy[int(p[1:])])))
        for order in ("policy_first", "baseline_first"):
            for repeat in range(2):
                won = rng.random() < chance
                verdicts.append({"trial_id": t["trial_id"], "baseline_id": plan.baseline.trial_id, "criterion": c,
                                 "prompt_id": p, "category": "ab"[int(p[1:]) % 2], "sample": 0, "order": order,
                                 "repeat": repeat, "outcome": "win" if won else "loss", "panel": ""})  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(answers), pd.DataFrame(verdicts)


def test_tables_over_seeds_categories_and_differences(plan: Plan) -> None:
    first, second = "dpo:helpfulness@2", "dpo:helpfulness@2>dpo:harmlessness@2"
    trials, answers, verdicts = drawn(plan, {first: 0.8, second: 0.4}, {f"{first} seed 0": 40})
    verdicts = verdicts[verdicts["trial_id"] != plan.baseline.trial_id]
    found = compare(plan, trials, answers, verdicts)
    labels = trials.set_index("trial_id")["label"]
    seeds = found["seeds"]
    assert len(seeds) == 2 * 2
    assert (seeds["seeds"] == 3).all()
    assert (seeds["low"] < seeds["win_rate"]).all()
    assert (seeds["win_rate"] < seeds["high"]).all()
    assert (seeds["variance_prompts"] > seeds["variance_repeats"]).all()  # prompts differ a lot here
    apart = found["differences"].assign(
        first=found["differences"]["trial_id"].map(labels).str.partition(" seed")[0],
        second=found["differences"]["other_id"].map(labels).str.partition(" seed")[0],
    )
    alike = apart["first"] == apart["second"]
    told = (apart["low"] > 0) | (apart["high"] < 0)
    assert told[~alike].all()
    assert not told[alike].any()
    assert set(found["categories"]["category"]) == {"a", "b"}
    length = found["length"].assign(label=found["length"]["trial_id"].map(labels)).set_index(["criterion", "label"])
    assert length.loc[("helpfulness", f"{first} seed 0"), "mean_tokens"] > 85
    assert found["panel"].empty
    assert found["agreement"].empty
    assert found["ranking"].empty


def test_trials_that_failed_are_in_no_table(plan: Plan) -> None:
    trials, answers, verdicts = drawn(plan, {}, {})
    trials.loc[1:, "status"] = "failed"
    assert all(table.empty for table in compare(plan, trials, answers, verdicts).values())
