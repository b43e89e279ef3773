"""Certificates in simulated sweeps: how often they are false, and how often the promised number of prompts gives one.

Prompts differ in difficulty, which policies share; a prompt has one verdict or six. Every sweep is chosen from by the
product's own code. The last line is JSON:
- false_share: largest share of sweeps, over all settings, in which a policy is certified although all lie on the
  boundary of the constraint; it should be 0.05 at most, up to the simulation's error (false_share_error).
- false_share_mixed: the same with safe policies before those on the boundary.
- power_at_margin: share of sweeps with a certificate at the number of prompts that the choice promises for 80 %.
- none_share: share of sweeps in which none qualifies when all policies are 0.05 below.
- missed_bound: largest share of lower bounds above the true rate, for 5 to 400 prompts and rates up to 0.98.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from sacpo.results.choice import choose
from sacpo.spaces.constraints import Constraint
from sacpo.statistics.certificate import lower_bounds, prompts_needed
from tests.benchmarks._options import parse
from tests.simulated_sweeps import prompt_scores, simulated

BOUND = 0.6
SAFE = [Constraint(criterion="harmlessness", at_least=BOUND)]
BOUNDARY = [(0.4 + 0.05 * i, BOUND) for i in range(6)]
MIXED = [(0.3, 0.85), (0.5, 0.75), *BOUNDARY]
BELOW = [(0.4 + 0.05 * i, BOUND - 0.05) for i in range(6)]
MARGIN = [(0.5, BOUND + 0.1), (0.7, 0.4)]


def main() -> None:
    """Simulate and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=1000, help="for each setting")
    parser.add_argument("--prompts", type=int, nargs="+", default=[24, 100, 400], help="of each criterion")
    options = parse(parser, sweeps=3, prompts=[24])
    rng = np.random.default_rng(2026)
    n = options.sweeps

    def certified(rates: list[tuple[float, float]], prompts: int, verdicts: int, safe: int) -> float:
        """Share of sweeps in which a policy after the first `safe` ones is certified."""
        names = {f"policy-{i}" for i in range(safe, len(rates))}
        choices = (choose(simulated(rng, rates, prompts, verdicts), SAFE) for _ in range(n))
        return sum(bool(names & set(choice.certified_trials)) for choice in choices) / n

    settings = [(prompts, verdicts) for prompts in options.prompts for verdicts in (1, 6)]
    false, mixed = (
        {setting: certified(rates, *setting, safe) for setting in settings}
        for rates, safe in ((BOUNDARY, 0), (MIXED, 2))
    )
    for title, shares in (("all on the boundary", false), ("after safe policies", mixed)):
        print(f"false certificates, {title}: {shares} (prompts, verdicts a prompt)")

    pilot = (np.arange(40) < 40 * MARGIN[0][1]).astype(float)  # wins and losses with the true rate
    promised = prompts_needed(pilot, BOUND, SAFE[0].confidence)
    assert promised is not None
    power = certified(MARGIN, 2 * promised, 1, 0)
    none = 1 - certified(BELOW, max(options.prompts), 1, 0)
    print(f"promised for a margin of 0.1: {2 * promised} prompts")

    missed = {}
    for prompts in (5, 20, 100, 400):
        for rate in (0.5, 0.9, 0.98):
            for verdicts in (1, 6, 0):
                scores = prompt_scores(rng, rate, rng.standard_normal((prompts, n)), verdicts)
                missed[prompts, rate, verdicts] = float((lower_bounds(scores, 0.95) > rate).mean())
    worst = max(missed, key=lambda setting: missed[setting])
    print(f"lower bounds above the truth, at most {missed[worst]:.3f}: prompts, rate, verdicts {worst}")
    figures = {
        "false_share": max(false.values()),
        "false_share_error": (0.05 * 0.95 / n) ** 0.5,
        "false_share_mixed": max(mixed.values()),
        "power_at_margin": power,
        "promised_prompts": 2 * promised,
        "none_share": none,
        "missed_bound": missed[worst],
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
