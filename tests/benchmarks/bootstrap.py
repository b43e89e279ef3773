"""Time of all intervals of a sweep: win rates of 29 trials and differences of their pairs.

Two criteria, 805 prompts, both orders of every pair of answers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time

import numpy as np

from sacpo.statistics.win_rate import differences, estimates, prompt_means
from tests.benchmarks._options import parse

CRITERIA, ORDERS = 2, 2


def main() -> None:
    """Print the seconds of both kinds of intervals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=29)
    parser.add_argument("--prompts", type=int, default=805)
    options = parse(parser, trials=4, prompts=40)
    rng = np.random.default_rng(0)
    # A prompt is easy or hard for all trials; trials differ in how often they win.
    skill = np.linspace(-1, 3, options.trials * CRITERIA)
    chances = 1 / (1 + np.exp(-rng.normal(0, 1.5, (options.prompts, 1)) - skill))
    prompts = np.repeat(np.arange(options.prompts), ORDERS)
    scores = (rng.binomial(1, chances[prompts]) + rng.binomial(1, chances[prompts])) / 2
    pairs = [
        (criterion * options.trials + i, criterion * options.trials + j)
        for criterion in range(CRITERIA)
        for i, j in itertools.combinations(range(options.trials), 2)
    ]
    started = time.perf_counter()
    means = np.column_stack([prompt_means(column, prompts)[1] for column in scores.T])
    rates = estimates(means)
    rates_done = time.perf_counter()
    gaps = differences(means, pairs)
    ended = time.perf_counter()
    print(f"{len(rates):4} win rates     {rates_done - started:.2f} s, e.g. {rates[-1]}")
    print(f"{len(gaps):4} differences   {ended - rates_done:.2f} s, e.g. {gaps[-1]}")
    decided = sum(estimate.low > 0 or estimate.high < 0 for estimate in gaps)
    print(f"{decided:4} differences whose interval excludes 0")
    print(json.dumps({"seconds": round(ended - started, 2)}))


if __name__ == "__main__":
    main()
