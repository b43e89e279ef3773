"""Win rates corrected to the human scale: coverage of the truth, and width against the labels alone.

People prefer the policy's answer on half of the prompts, or on seven of ten. A judge is biased towards the policy and
agrees with 80 % of the labels in the first case. 200 prompts have a label, and ten times as many have only a verdict of
the judge. The last line is JSON: for the first case `coverage` (share of 95 % intervals that hold the truth) and
`width_ratio` (mean width over that of the labels alone), and the same for the second with `_seven_of_ten`.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from sacpo.statistics.human import prediction_powered
from sacpo.statistics.win_rate import estimates
from tests.benchmarks._options import parse

WON_IF_WON, WON_IF_LOST = 0.9, 0.3  # the judge's wins among people's wins and losses: 80 % agreement at a rate of 0.5


def main() -> None:
    """Simulate labels and verdicts, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--labels", type=int, default=200)
    options = parse(parser, simulations=20)
    rng = np.random.default_rng(0)
    figures = {}
    for name, truth in (("", 0.5), ("_seven_of_ten", 0.7)):
        inside, widths, alone, biased = 0, [], [], []
        for _ in range(options.simulations):
            human = rng.random(options.labels * 11) < truth
            judged = (rng.random(human.size) < np.where(human, WON_IF_WON, WON_IF_LOST)).astype(float)
            labels = human[: options.labels].astype(float)
            rate = prediction_powered(labels, judged[: options.labels], judged[options.labels :]).rate
            (plain,) = estimates(labels[:, None])
            inside += rate.low <= truth <= rate.high
            widths.append(rate.high - rate.low)
            alone.append(plain.high - plain.low)
            biased.append(judged.mean())
        print(f"truth {truth}, win rate by the judge {np.mean(biased):.3f}")
        figures[f"coverage{name}"] = round(inside / options.simulations, 4)
        figures[f"width_ratio{name}"] = round(float(np.mean(widths) / np.mean(alone)), 3)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
