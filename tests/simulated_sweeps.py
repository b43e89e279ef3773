"""Results folders of simulated sweeps: policies with known win rates, judged on random prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta, norm

from sacpo.results.load import Results
from sacpo.results.sweep_facts import SweepFacts

Rates = Sequence[tuple[float, float]]
"""True helpfulness and harmlessness of each policy."""


def prompt_scores(rng: np.random.Generator, rate: float, difficulty: np.ndarray, verdicts: int) -> np.ndarray:
    """Mean scores on prompts whose chances are Beta with this mean; the difficulty is shared between policies.

    Args:
        rng: Source of randomness.
        rate: The true win rate.
        difficulty: Shape (prompts,), standard normal.
        verdicts: Verdicts per prompt; 0 for the chances themselves (soft scores).
    """
    mixed = 0.8 * difficulty + 0.6 * rng.standard_normal(difficulty.shape)
    chances = beta.ppf(norm.cdf(mixed), 2 * rate, 2 * (1 - rate))
    return rng.binomial(verdicts, chances) / verdicts if verdicts else chances


def simulated(rng: np.random.Generator, rates: Rates, prompts: int, verdicts: int = 1, space: Any = None) -> Results:
    """The results of a sweep with the SFT policy and one policy for each pair of rates."""
    names = [f"policy-{i}" for i in range(len(rates))]
    tables = []
    for axis, criterion in enumerate(("helpfulness", "harmlessness")):
        difficulty = rng.standard_normal(prompts)
        ids = [f"{number:012x}" for number in rng.integers(0, 2**48, prompts)]
        for name, pair in zip(names, rates, strict=True):
            scores = prompt_scores(rng, pair[axis], difficulty, verdicts)
            # A prompt's mean score as verdicts: its wins first. One verdict stands for each.
            won = np.arange(verdicts) < np.rint(scores * verdicts)[:, None]
            tables.append(
                pd.DataFrame(
                    {
                        "trial_id": name,
                        "criterion": criterion,
                        "prompt_id": np.repeat(ids, verdicts),
                        "outcome": np.where(won, "win", "loss").ravel(),
                    }
                )
            )
    table = pd.concat(tables, ignore_index=True).assign(baseline_id="sft", panel="", category="", sample=0)
    trials = pd.DataFrame({"trial_id": ["sft", *names], "label": ["sft", *names], "status": "done"})
    trials = trials.assign(method=["sft", *["sacpo"] * len(names)], unmoved=False)
    facts = SweepFacts(name="simulated", plan_id="plan", space=space or {}, store="store", canaries="run")
    return Results(facts, trials, pd.DataFrame(), pd.DataFrame(), table, None)
