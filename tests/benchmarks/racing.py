"""Sweeps that race (`evaluation.racing`), simulated: the share of the calls that they need, and whether they agree.

Policies have the win rates of the paper's 28 points beside the SFT policy (Wachi et al., Stepwise Alignment for
Constrained Language Model Policy Optimization, NeurIPS 2024, table 3 and figure 2), judged in both orders on as many
prompts as there (129 and 83), whose difficulty they share. When a race looks and whom it stops is the product's.
The last line is JSON:
- same_front_share: share of the sweeps with the same front as if all policies were judged in full; calls_share: of the
  verdicts, how many were asked for.
- calls_share_spread, same_front_share_spread: the same where half of the policies lie well inside the front: every
  second one has win rates that are 0.2 lower. With `_lowest`: those 14 that have the lowest sum of win rates, so that
  nearly all others are on the front or close to it.
- same_choice_share, calls_share_choice: the same for the choice under the constraint harmlessness >= 0.6.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sacpo.planning.racing import LOOKS, MOST_LOST
from sacpo.statistics.certificate import is_above
from sacpo.statistics.pareto import on_front
from sacpo.statistics.racing import Judged, choice_chances, front_chances, to_stop
from tests.benchmarks._options import parse
from tests.simulated_sweeps import prompt_scores

PROMPTS = 129, 83
BOUND, CONFIDENCE = 0.6, 0.95
PAPER = (
    *((0.596, 0.692), (0.425, 0.796), (0.610, 0.820)),  # Beaver v1 to v3
    *((0.792, 0.490), (0.678, 0.458), (0.605, 0.811)),  # DPO and KTO on helpfulness, DPO on harmlessness
    *((0.627, 0.793), (0.685, 0.805), (0.722, 0.697), (0.731, 0.572)),  # DPO > DPO
    *((0.498, 0.454), (0.479, 0.491), (0.556, 0.530), (0.660, 0.524)),  # DPO > KTO
    *((0.595, 0.856), (0.725, 0.789), (0.681, 0.730), (0.734, 0.676)),  # KTO > DPO
    *((0.428, 0.696), (0.638, 0.761), (0.672, 0.738), (0.672, 0.807)),  # harmlessness first
    *((0.798, 0.545), (0.787, 0.651), (0.764, 0.768)),  # P-SACPO
    *((0.816, 0.588), (0.759, 0.617), (0.694, 0.690)),  # averages of DPO on helpfulness and DPO on harmlessness
)
"""Helpfulness and harmlessness."""

Scores = NDArray[np.float64]  # (prompts, policies)
Chances = Callable[[Judged, Judged], Scores]


def main() -> None:
    """Simulate and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=400, help="for each setting")
    options = parse(parser, sweeps=3)
    rng = np.random.default_rng(2026)
    points = np.array(PAPER)
    lowest = np.isin(np.arange(len(points)), np.argsort(points.sum(axis=1))[:14])
    every_second = np.arange(len(points)) % 2 == 1
    settings = {"": points, "_spread": points - 0.2 * every_second[:, None], "_lowest": points - 0.2 * lowest[:, None]}
    figures = {}
    for suffix, rates in settings.items():
        outcomes = [front_race(*sweep(rng, rates)) for _ in range(options.sweeps)]
        same, calls = np.mean(outcomes, axis=0)
        figures |= {f"same_front_share{suffix}": same, f"calls_share{suffix}": calls}
    same, calls = np.mean([choice_race(rng, *sweep(rng, points)) for _ in range(options.sweeps)], axis=0)
    figures |= {"same_choice_share": same, "calls_share_choice": calls}
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


def sweep(rng: np.random.Generator, rates: Scores) -> list[Scores]:
    """The scores of all policies on the prompts of both criteria."""
    difficulties = [rng.standard_normal(n) for n in PROMPTS]
    return [
        np.column_stack([prompt_scores(rng, rate, difficulty, 2) for rate in rates[:, axis]])
        for axis, difficulty in enumerate(difficulties)
    ]


def raced(helpful: Scores, harmless: Scores, chances: Chances, certifying: int = 0) -> tuple[list[int], int]:
    """The policies that race to the end on these prompts, and the verdicts that were asked for."""
    active = np.arange(helpful.shape[1])
    calls, before, spent = 0, 0, 0.0
    races = len(LOOKS) + bool(certifying)
    for number, share in enumerate((*LOOKS, 1.0)[:races], start=1):
        counts = [int(share * len(scores)) for scores in (helpful, harmless)]
        calls, before = calls + (sum(counts) - before) * len(active), sum(counts)
        judged = [
            Judged(scores[:count, active], len(scores) - count, certifying)
            for scores, count in zip((helpful, harmless), counts, strict=True)
        ]
        expected = chances(*judged)
        stops = to_stop(expected, MOST_LOST * number / races - spent)
        active, spent = active[~stops], spent + float(expected[stops].sum())
    return active.tolist(), calls + (len(helpful) + len(harmless) - before) * len(active)


def front_race(helpful: Scores, harmless: Scores) -> tuple[bool, float]:
    """Whether a race has the front of the full judging, and its share of the verdicts."""
    points = np.column_stack([helpful.mean(axis=0), harmless.mean(axis=0)])
    active, calls = raced(helpful, harmless, front_chances)

    def front(policies: list[int]) -> set[int]:
        with_baseline = [*points[policies], (0.5, 0.5)]
        return {policy for policy, is_on in zip([*policies, -1], on_front(with_baseline), strict=True) if is_on}

    return front(active) == front(list(range(len(points)))), calls / (helpful.size + harmless.size)


def choice_race(rng: np.random.Generator, helpful: Scores, harmless: Scores) -> tuple[bool, float]:
    """Whether a race has the choice of the full judging, by the rule of `sacpo choose`, and its share of verdicts."""
    first, second = zip(*(_parts(rng, scores) for scores in (helpful, harmless)), strict=True)
    certifying = len(second[0]) + len(second[1])

    def chances(gain: Judged, safety: Judged) -> Scores:
        return choice_chances(gain, [safety], [BOUND])

    active, calls = raced(*first, chances, len(second[1]))
    means = [scores.mean(axis=0) for scores in first]
    shown = is_above(second[1], [BOUND], CONFIDENCE)[:, 0]

    def chosen(policies: list[int]) -> int | None:
        gains, safeties = (np.asarray(mean[policies]) for mean in means)
        front = np.flatnonzero(on_front(np.column_stack([safeties, gains])))
        sequence = [policies[i] for i in front[np.lexsort((-gains[front], -safeties[front]))]]
        certified = [policy for i, policy in enumerate(sequence) if shown[sequence[: i + 1]].all()]
        return certified[-1] if certified else None

    calls += certifying * len(active)
    return chosen(active) == chosen(list(range(helpful.shape[1]))), calls / (helpful.size + harmless.size)


def _parts(rng: np.random.Generator, scores: Scores) -> tuple[Scores, Scores]:
    certifying = rng.random(len(scores)) < 0.5
    return scores[~certifying], scores[certifying]


if __name__ == "__main__":
    main()
