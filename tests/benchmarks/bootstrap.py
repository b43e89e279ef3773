"""How long all intervals of a sweep take: 29 trials and their pairs, two criteria, 805 prompts, both orders."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np

from sacpo.statistics.win_rate import differences, estimates, prompt_means

TRIALS, CRITERIA, PROMPTS, ORDERS = 29, 2, 805, 2


def main() -> None:
    rng = np.random.default_rng(0)
    # A prompt is easy or hard for all trials; trials win more or less often.
    chances = 1 / (1 + np.exp(-rng.normal(0, 1.5, (PROMPTS, 1)) - np.linspace(-1, 3, TRIALS * CRITERIA)))
    prompts = np.repeat(np.arange(PROMPTS), ORDERS)
    scores = (rng.binomial(1, chances[prompts]) + rng.binomial(1, chances[prompts])) / 2
    pairs = [
        (criterion * TRIALS + i, criterion * TRIALS + j)
        for criterion in range(CRITERIA)
        for i, j in itertools.combinations(range(TRIALS), 2)
    ]
    started = time.perf_counter()
    means = np.column_stack([prompt_means(column, prompts)[1] for column in scores.T])
    rates = estimates(means)
    rates_done = time.perf_counter()
    apart = differences(means, pairs)
    ended = time.perf_counter()
    print(f"{len(rates):4} win rates     {rates_done - started:.2f} s, e.g. {rates[-1]}")
    print(f"{len(apart):4} differences   {ended - rates_done:.2f} s, e.g. {apart[-1]}")
    shown = sum(estimate.low > 0 or estimate.high < 0 for estimate in apart)
    print(f"{shown:4} differences whose interval leaves out 0")
    print(json.dumps({"seconds": round(ended - started, 2)}))


if __name__ == "__main__":
    main()
