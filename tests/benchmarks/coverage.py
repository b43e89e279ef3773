"""Coverage of 95 % intervals of a win rate: ours, the spread of three judge repeats, the bootstrap of verdicts.

A prompt's probability of a win is drawn from a Beta distribution of a given mean and concentration (low: prompts differ
much). Its verdicts are drawn from that probability, some of them ties. An interval should cover the rate that fresh
prompts would give. The last line is JSON: for each interval and number of prompts, the coverage furthest from 0.95
among all distributions, so that no distribution is averaged away.
"""

from __future__ import annotations

import argparse
import itertools
import json
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta, norm

from sacpo.statistics.win_rate import Estimate, differences, estimates
from tests.benchmarks._options import parse

CONCENTRATIONS = (1.0, 3.0, 8.0)
MEANS = (0.5, 0.7, 0.85, 0.95)
PAIRS = ((0.5, 0.5), (0.7, 0.85), (0.95, 0.85), (0.95, 0.95))
TIES_AND_VERDICTS = ((0.0, 2), (0.3, 3), (0.6, 6))  # share of ties, verdicts per prompt
RANK_CORRELATION = 0.7  # of two policies' chances: a prompt that is hard for one is hard for the other
ROW_RESAMPLES = 500
AT_A_TIME = 1000


def main() -> None:
    """Simulate both kinds of intervals and print their coverages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2500, help="for each distribution and number of prompts")
    parser.add_argument("--prompts", type=int, nargs="+", default=[83, 129, 805], help="numbers of prompts")
    options = parse(parser, simulations=4, prompts=[12])
    simulations = options.simulations
    rng = np.random.default_rng(2024)
    print(f"Monte Carlo error of a coverage near 0.95: {np.sqrt(0.95 * 0.05 / simulations):.4f}\n")

    figures: dict[str, Any] = {}
    shapes = list(itertools.product(CONCENTRATIONS, MEANS, TIES_AND_VERDICTS))
    names = ["concentration", "mean", "ties", "verdicts"]
    rates = pd.DataFrame(
        {
            f"{name}_{n}": value
            for n in options.prompts
            for name, value in rate_coverage(rng, n, simulations, *shape).items()
        }
        for shape in shapes
    ).set_index(pd.MultiIndex.from_tuples([(c, m, *tv) for c, m, tv in shapes], names=names))
    show("Win rates", rates, figures)

    shapes = list(itertools.product(CONCENTRATIONS, PAIRS, TIES_AND_VERDICTS))
    paired = pd.DataFrame(
        {f"differences_{n}": difference_coverage(rng, n, simulations, *shape) for n in options.prompts}
        for shape in shapes
    ).set_index(pd.MultiIndex.from_tuples([(c, f"{a} - {b}", *tv) for c, (a, b), tv in shapes], names=names))
    show("Paired differences", paired, figures)
    print(json.dumps(figures))


def rate_coverage(
    rng: np.random.Generator, n: int, simulations: int, concentration: float, mean: float, judging: tuple[float, int]
) -> dict[str, float]:
    """Coverage of the three intervals of a win rate."""
    ties, verdicts = judging
    truth = ties / 2 + (1 - ties) * mean
    inside = np.zeros(3)
    for size in sizes(simulations):
        chances = rng.beta(concentration * mean, concentration * (1 - mean), (n, size))
        wins, tied = judge(rng, chances, ties, verdicts)
        inside[0] += covered(estimates((wins + tied / 2) / verdicts), truth)

        # The interval of the paper's code: the same answers judged three times, and the spread of the three rates.
        more = [judge(rng, chances, ties, verdicts) for _ in range(2)]
        repeats = np.array([(w + k / 2).mean(axis=0) / verdicts for w, k in [(wins, tied), *more]])
        inside[1] += (np.abs(repeats.mean(axis=0) - truth) <= norm.ppf(0.975) * repeats.std(axis=0)).sum()

        # A resample of verdicts is a draw of the numbers of wins and ties.
        rows = n * verdicts
        shares = np.stack([wins.sum(axis=0), tied.sum(axis=0)], axis=1) / rows
        shares = np.column_stack([shares, np.maximum(0, 1 - shares.sum(axis=1))])
        drawn = rng.multinomial(rows, shares[:, None, :], (size, ROW_RESAMPLES))
        low, high = np.quantile((drawn[..., 0] + drawn[..., 1] / 2) / rows, [0.025, 0.975], axis=1)
        inside[2] += ((low <= truth) & (truth <= high)).sum()
    return dict(zip(("coverage", "repeat_spread", "row_bootstrap"), inside / simulations, strict=True))


def difference_coverage(
    rng: np.random.Generator,
    n: int,
    simulations: int,
    concentration: float,
    means: tuple[float, float],
    judging: tuple[float, int],
) -> float:
    """Coverage of the interval of the difference between two policies that answered the same prompts."""
    ties, verdicts = judging
    truth = (1 - ties) * (means[0] - means[1])
    ranks = np.linspace(0, 1, 2001)[1:-1]
    tables = [beta.ppf(ranks, concentration * mean, concentration * (1 - mean)) for mean in means]
    inside = 0
    for size in sizes(simulations):
        shared, *own = rng.standard_normal((3, n, size))
        columns = []
        for table, noise in zip(tables, own, strict=True):
            mixed = np.sqrt(RANK_CORRELATION) * shared + np.sqrt(1 - RANK_CORRELATION) * noise
            wins, tied = judge(rng, np.interp(norm.cdf(mixed), ranks, table), ties, verdicts)
            columns.append((wins + tied / 2) / verdicts)
        inside += covered(differences(np.hstack(columns), [(i, i + size) for i in range(size)]), truth)
    return inside / simulations


def sizes(simulations: int) -> list[int]:
    """Sizes of the groups in which simulations run, so that memory stays bounded."""
    return [min(AT_A_TIME, simulations - start) for start in range(0, simulations, AT_A_TIME)]


def judge(rng: np.random.Generator, chances: np.ndarray, ties: float, verdicts: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of verdicts on each prompt that are wins, and that are ties."""
    tied = rng.binomial(verdicts, ties, chances.shape)
    return rng.binomial(verdicts - tied, chances), tied


def covered(intervals: list[Estimate], truth: float) -> int:
    """Number of intervals that contain the true value."""
    return sum(estimate.low - 1e-9 <= truth <= estimate.high + 1e-9 for estimate in intervals)


def show(title: str, table: pd.DataFrame, figures: dict[str, Any]) -> None:
    """Print a table of coverages; add each column's coverage furthest from 0.95 to the figures."""
    furthest = {name: float(column[(column - 0.95).abs().idxmax()]) for name, column in table.items()}
    print(f"{title}\n{table.round(3).to_string()}\nfurthest from 0.95:\n{pd.Series(furthest).round(3).to_string()}\n")
    figures.update({name: round(value, 4) for name, value in furthest.items()})


if __name__ == "__main__":
    main()
