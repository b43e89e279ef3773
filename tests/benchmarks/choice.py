"""Error of the lambda that a preview finds: from two policies, after a third, and over the policies' distance.

Worlds are the synthetic world with other SFT policies, KL parameters and lambdas; policies are exact optima, answers
are drawn from them. The distance is varied with Gaussian log-ratios, whose path is known, at 90 % of the way.

With really trained policies, the synthetic world's sweeps run in this process. The policy at the lambda that the
preview of the two ends expects to reach a bound b is trained, and then the one that the preview expects with this
policy; the violation is the distance of its exact E[g] from b.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
from scipy.optimize import brentq

from sacpo import sweep
from sacpo.results import load
from sacpo.results.load import Results
from sacpo.results.preview import expected_lambda
from sacpo.search.observations import rounded
from sacpo.statistics.preview import ScoredAnswers, Trained, crossing
from sacpo.synthetic.world import PROMPTS, SAFETY, Array, optimum
from tests.benchmarks._options import is_smoke, parse
from tests.commands import call, write_space
from tests.spaces import quickstart, small

CHAIN = "dpo:helpfulness>dpo:harmlessness"
SETTINGS = ((2.0, 2.0), (1.5, 2.0), (2.5, 3.0), (2.0, 4.0), (1.0, 1.5))
"""beta and the largest lambda of each world."""
POINTS = np.linspace(0.0, 1.0, 201)
TARGET = 0.9


def main() -> None:
    """Print the median errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=5)
    parser.add_argument("--thresholds", type=int, default=20)
    parser.add_argument("--answers", type=int, default=8, help="of each policy to each prompt")
    parser.add_argument("--repeats", type=int, default=40, help="of each distance")
    parser.add_argument("--trained-worlds", type=int, default=3, help="worlds whose policies are really trained")
    parser.add_argument("--trained-thresholds", type=int, default=4, help="of each of these; two trainings each")
    parser.add_argument("--rows", type=int, default=16384, help="preferences of each objective in these")
    parser.add_argument("--trained-answers", type=int, default=32, help="of each of these policies to each prompt")
    toy = {"worlds": 1, "thresholds": 2, "repeats": 2, "trained_worlds": 1, "trained_thresholds": 1}
    toy |= {"rows": 256, "trained_answers": 2}
    options = parse(parser, **toy)
    errors = np.concatenate(
        [world_errors(w, options.thresholds, options.answers, np.random.default_rng(w)) for w in range(options.worlds)]
    )
    two, three, one_sided = np.median(errors, axis=0)
    print(f"median |error| of lambda: two policies {two:.3f}, after a third {three:.3f}, one-sided {one_sided:.3f}")
    by_distance = {}
    for nats in (1, 5, 15, 30):
        row = {stones: distance_error(nats, stones, options.answers, options.repeats) for stones in (0, 1, 3)}
        by_distance[str(nats)] = {f"{stones} stones": round(error, 4) for stones, error in row.items()}
        print(f"{nats:3} nats: " + ", ".join(f"{stones} stones {error:.3f}" for stones, error in row.items()))
    violations = []
    for world in range(options.trained_worlds):
        with tempfile.TemporaryDirectory() as folder:
            trained = TrainedWorld(world, options.rows, options.trained_answers, Path(folder))
            violations += trained.violations(options.trained_thresholds)
    figures: dict[str, object] = {
        "lambda_error_two": round(float(two), 4),
        "lambda_error_three": round(float(three), 4),
        "lambda_error_one_sided": round(float(one_sided), 4),
        "lambda_error_two_p90": round(float(np.quantile(errors[:, 0], 0.9)), 4),
        "lambda_error_three_p90": round(float(np.quantile(errors[:, 1], 0.9)), 4),
        "by_distance": by_distance,
    }
    if violations:
        first, second = np.quantile(violations, 0.9, axis=0)
        print(f"90th percentile of |E[g] - b|: from two policies {first:.3f}, after a third {second:.3f}")
        figures |= {"violation_p90_two": round(float(first), 4), "violation_p90": round(float(second), 4)}
    print(json.dumps(figures))


def world_errors(world: int, thresholds: int, answers: int, rng: np.random.Generator) -> Array:
    """Relative errors of lambda in one world; shape (thresholds, 3): two policies, after a third, one-sided."""
    beta, largest = SETTINGS[world]
    sft = np.exp(0.8 * rng.standard_normal(SAFETY.shape))
    sft /= sft.sum(axis=1, keepdims=True)

    def policy(value: float) -> Array:
        return optimum(sft, 1 / beta, value / beta)

    def expected(value: float) -> float:
        return float((policy(value) * SAFETY).sum(axis=1).mean())

    start, end = expected(0.0), expected(largest)
    errors = []
    for share in (np.arange(thresholds) + 0.5) / thresholds:
        threshold = start + share * (end - start)
        truth = brentq(lambda value, b=threshold: expected(value) - b, 0.0, largest)
        ends = [policy(0.0), policy(largest)]
        first = draw(ends, answers, rng).root(threshold) * largest
        # The third policy is trained at the lambda that the two let expect, within the bracket.
        trained = float(np.clip(np.nan_to_num(first, nan=largest), 0.02 * largest, 0.98 * largest))
        three = draw([*ends, policy(trained)], answers, rng, [Trained(2, trained / largest)])
        second = crossing(POINTS, three.curve(POINTS).value, threshold) * largest
        values = np.nan_to_num(
            [first, second, one_sided(ends[0], largest / beta, answers, threshold, rng)], nan=largest
        )
        errors.append(np.abs(values * [1, 1, largest] / truth - 1))
    return np.array(errors)


def draw(
    policies: Sequence[Array], answers: int, rng: np.random.Generator, trained: Sequence[Trained] = ()
) -> ScoredAnswers:
    """So many answers of each policy to each prompt, scored by g."""
    logs = np.log(np.stack(policies, axis=-1))
    source, prompt = (part.ravel() for part in np.mgrid[: len(policies), : len(PROMPTS), :answers][:2].astype(np.intp))
    rows = [rng.choice(policies[j].shape[1], p=policies[j][x]) for j, x in zip(source, prompt, strict=True)]
    return ScoredAnswers(logs[prompt, rows], source, prompt, SAFETY[prompt, rows], trained=trained)


def one_sided(first: Array, tilt: float, answers: int, threshold: float, rng: np.random.Generator) -> float:
    """The same q by weights e^(q L g / beta) of twice as many answers of the first policy alone, as CAN does."""
    rows = np.stack([rng.choice(first.shape[1], 2 * answers, p=p) for p in first])
    scores = np.take_along_axis(SAFETY, rows, axis=1)
    weights = np.exp(POINTS[:, None, None] * tilt * (scores - scores.max(axis=1, keepdims=True)))
    means = (weights * scores).sum(axis=2) / weights.sum(axis=2)
    return crossing(POINTS, means.mean(axis=1), threshold)


class TrainedWorld:
    """Sweeps of the quickstart's chain with one beta and seed, on one store.

    Args:
        world: Number of the setting, and the seed.
        rows: Preferences of each objective.
        answers: Answers of each policy to each prompt. Their number limits how well the preview knows a policy's E[g].
        folder: Where the sweeps' folders go.
    """

    def __init__(self, world: int, rows: int, answers: int, folder: Path) -> None:
        self.beta, self.largest = SETTINGS[world]
        self.folder = folder
        self._runs = 0
        self.data = (small() if is_smoke() else quickstart()) | {"merges": [], "seeds": [world]}
        self.data["evaluation"]["sentinels"] = []
        self.data["evaluation"]["generation"]["samples"] = answers
        for source in self.data["data"]["preferences"].values():
            source["rows"] = rows

    def run(self, *lambdas: float) -> Results:
        """The results of a sweep with these policies after the last stage, as far as they are not there yet."""
        ratios = [rounded(self.beta / value) for value in dict.fromkeys(lambdas)]
        self.data["chains"] = [{"chain": CHAIN, "beta": self.beta, "beta_over_lambda": sorted({*ratios})}]
        self._runs += 1
        results = self.folder / f"results-{self._runs}"
        with mock.patch("sacpo.runs.sweep_run.write_report"):  # takes most of the time of a sweep that has its policies
            answer = call(
                sweep.main,
                str(write_space(self.data, self.folder)),
                *("--address", "in-process", "--results", str(results), "--store", str(self.folder / "store")),
            )
        if answer.returncode:
            raise SystemExit(answer.stdout + answer.stderr)
        return load(results)

    def expected_safety(self, results: Results, value: float) -> float:
        """The exact E[g] of the policy that was trained at this lambda; 0: of the stage before."""
        trials = results.trials
        chosen = (
            trials["method"] == "one-step" if value == 0 else trials["beta_over_lambda"] == rounded(self.beta / value)
        )
        return float(trials.loc[chosen, "expected_safety"].iloc[0])

    def recommended(self, results: Results, threshold: float) -> float:
        """The lambda at which the preview reaches a bound, within the path."""
        value = expected_lambda(results.comparisons["preview"], "expected_safety", threshold).value
        return float(np.clip(np.nan_to_num(value, nan=self.largest), 0.02 * self.largest, 0.98 * self.largest))

    def violations(self, thresholds: int) -> list[tuple[float, float]]:
        """|E[g] - b| at the lambda from two policies, and at the one with the policy that was trained there."""
        ends = self.run(self.largest)
        low, high = (self.expected_safety(ends, value) for value in (0, self.largest))
        found = []
        for share in (np.arange(thresholds) + 0.5) / thresholds:
            bound = low + share * (high - low)
            first = self.recommended(ends, bound)
            three = self.run(self.largest, first)
            second = self.recommended(three, bound)
            four = self.run(self.largest, first, second)
            reached = self.expected_safety(three, first), self.expected_safety(four, second)
            found.append((abs(reached[0] - bound), abs(reached[1] - bound)))
            print(f"beta {self.beta}, b {bound:.3f}: lambda {first:.3f} then {second:.3f}, E[g] {reached}", flush=True)
        return found


def distance_error(nats: float, stones: int, answers: int, repeats: int, prompts: int = 150) -> float:
    """Median relative error of lambda at 90 % of the way between two policies so many nats apart."""
    at = np.array([0.0, 1.0, *(np.arange(stones) + 1) / (stones + 1)])
    centres = nats * (2 * at - 1)  # mean log-ratio of each policy; its variance is 2 x nats
    source, prompt = (part.ravel() for part in np.mgrid[: len(at), :prompts, :answers][:2].astype(np.intp))
    errors = []
    for seed in range(repeats):
        rng = np.random.default_rng([seed, stones])
        ratio = centres[source] + np.sqrt(2 * nats) * rng.standard_normal(len(source))
        score = (ratio / nats + 1) / 2 + 0.5 * rng.standard_normal(len(source))
        logps = -((ratio[:, None] - centres) ** 2) / (4 * nats)
        found = ScoredAnswers(logps, source, prompt, score).root(TARGET)
        errors.append(abs(np.nan_to_num(found, nan=1.0) / TARGET - 1))
    return float(np.median(errors))


if __name__ == "__main__":
    main()
