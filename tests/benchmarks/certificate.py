"""Certificates in simulated sweeps: how often they are false, and how often the promised number of prompts gives one.

Prompts differ in difficulty, which policies share; a prompt has one verdict or six. The rule of `sacpo choose` is
followed on arrays, with the product's test, many sweeps at a time; 100 sweeps go through `choose` itself.
The last line is JSON:
- false_share: largest share of sweeps, over all settings, in which a policy is certified although all lie on the
  boundary of the constraint; it should be 0.05 at most, up to the simulation's error (false_share_error).
- false_share_mixed: the same with safe policies before those on the boundary. false_share_choose: through `choose`.
- power_at_margin: share of sweeps with a certificate at the number of prompts that is promised for 80 %.
- none_share: share of sweeps in which none qualifies when all policies are 0.05 below.
- missed_bound: largest share of lower bounds above the true rate, for 5 to 400 prompts and rates up to 0.98.
"""

from __future__ import annotations

import argparse
import itertools
import json
from unittest import mock

import numpy as np

from sacpo.results.choice import choose
from sacpo.spaces.constraints import Constraint
from sacpo.statistics.certificate import is_above, prompts_needed
from sacpo.statistics.pareto import on_front
from tests.benchmarks._options import parse
from tests.simulated_sweeps import Rates, prompt_scores, simulated

BOUND, CONFIDENCE = 0.6, 0.95
SAFE = [Constraint(criterion="harmlessness", at_least=BOUND, confidence=CONFIDENCE)]
BOUNDARY = [(0.4 + 0.05 * i, BOUND) for i in range(6)]
MIXED = [(0.3, 0.85), (0.5, 0.75), *BOUNDARY]
BELOW = [(0.4 + 0.05 * i, BOUND - 0.05) for i in range(6)]
MARGIN = [(0.5, BOUND + 0.1), (0.7, 0.4)]
AT_A_TIME = 250  # sweeps that share the split of their prompts


def main() -> None:
    """Simulate and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=4000, help="for each setting")
    parser.add_argument("--prompts", type=int, nargs="+", default=[24, 100, 400], help="of each criterion")
    options = parse(parser, sweeps=10, prompts=[24])
    rng, n = np.random.default_rng(2026), options.sweeps

    def certified(rates: Rates, prompts: int, verdicts: int, safe: int = 0) -> float:
        """Share of sweeps in which a policy after the first `safe` ones is certified."""
        sizes = [min(AT_A_TIME, n - start) for start in range(0, n, AT_A_TIME)]
        return sum(certified_sweeps(rng, rates, prompts, verdicts, safe, size) for size in sizes) / n

    settings = list(zip(options.prompts, itertools.cycle((1, 6)), strict=False))
    false = {setting: certified(BOUNDARY, *setting) for setting in settings}
    mixed = {setting: certified(MIXED, *setting, safe=2) for setting in settings}
    for title, shares in (("all on the boundary", false), ("after safe policies", mixed)):
        print(f"false certificates, {title}: {shares} (prompts, verdicts a prompt)")
    with mock.patch("sacpo.results.choice.prompts_needed", return_value=None):  # it takes most of the time
        whole = [choose(simulated(rng, BOUNDARY, 100), SAFE).certified > 0 for _ in range(min(100, n))]

    pilot = (np.arange(40) < 40 * MARGIN[0][1]).astype(float)  # wins and losses with the true rate
    promised = prompts_needed(pilot, BOUND, CONFIDENCE)
    assert promised is not None
    missed = {
        (prompts, rate, verdicts): float(
            is_above(prompt_scores(rng, rate, rng.standard_normal((prompts, n)), verdicts), [rate], CONFIDENCE).mean()
        )
        for prompts, rate, verdicts in itertools.product((5, 20, 100, 400), (0.5, 0.9, 0.98), (1, 6, 0))
    }
    worst = max(missed, key=lambda setting: missed[setting])
    print(f"lower bounds above the truth, at most {missed[worst]:.3f}: prompts, rate, verdicts {worst}")
    figures = {
        "false_share": max(false.values()),
        "false_share_error": (0.05 * 0.95 / n) ** 0.5,
        "false_share_mixed": max(mixed.values()),
        "false_share_choose": float(np.mean(whole)),
        "power_at_margin": certified(MARGIN, 2 * promised, 1),
        "promised_prompts": 2 * promised,
        "none_share": 1 - certified(BELOW, max(options.prompts), 1),
        "missed_bound": missed[worst],
    }
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def certified_sweeps(
    rng: np.random.Generator, rates: Rates, prompts: int, verdicts: int, safe: int, sweeps: int
) -> int:
    """Number of sweeps in which a policy after the first `safe` ones is certified, by the rule of `choose`."""
    certifying = rng.random(prompts) < 0.5
    helpful, harmless = (
        np.stack([prompt_scores(rng, pair[axis], difficulty, verdicts) for pair in rates], axis=2)
        for axis, difficulty in enumerate(rng.standard_normal((2, prompts, sweeps)))
    )
    gains, rates_seen = helpful[~certifying].mean(axis=0), harmless[~certifying].mean(axis=0)
    tested = harmless[certifying].reshape(int(certifying.sum()), -1)
    shown = is_above(tested, [BOUND], CONFIDENCE).reshape(sweeps, len(rates))
    count = 0
    for gain, seen, passed in zip(gains, rates_seen, shown, strict=True):
        front = np.flatnonzero(on_front(np.column_stack([seen, gain])))
        sequence = front[np.lexsort((front, -gain[front], -seen[front]))]
        failed = np.flatnonzero(~passed[sequence])
        count += bool((sequence[: failed[0] if failed.size else None] >= safe).any())
    return count


if __name__ == "__main__":
    main()
