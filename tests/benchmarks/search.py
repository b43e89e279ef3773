"""Searches against a grid and against Optuna's samplers, simulated: hypervolume over the number of trainings.

Worlds are the synthetic world with other SFT policies. A training gives the exact optimum with noise in each answer's
log-probability; a weight merge lies near the path between its two policies. Win rates and previews come from sampled
answers, as in a sweep; hypervolumes and gaps are of the exact win rates.
"""

from __future__ import annotations

import argparse
import json
from functools import cached_property
from typing import Any

import numpy as np

from sacpo.search.observations import Known, Observation, Path
from sacpo.search.rules import propose
from sacpo.spaces.loading import parse_space
from sacpo.spaces.search import BridgeSearch
from sacpo.spaces.space import Space
from sacpo.statistics.front import hypervolumes
from sacpo.statistics.preview import ScoredAnswers, Trained
from sacpo.synthetic.world import REWARD, SAFETY, Array, optimum, share_of_optimum
from tests.benchmarks._options import parse
from tests.spaces import small

BETAS = (1.5, 2.0, 3.0)
RATIOS = (0.5, 1.0, 2.0, 4.0, 8.0)
CHAIN = "dpo:helpfulness>dpo:harmlessness"
GRID = len(BETAS) * (1 + len(RATIOS))
"""Trainings of the grid."""
NOISE = 0.2
"""Standard deviation of a trained answer's log-probability, in nats a stage."""
POINTS = np.linspace(0.0, 1.0, 41)
METHODS: dict[str, dict[str, Any]] = {
    "bridge": {"method": "bridge", "q": [0.25, 0.5, 0.75]},
    "bridge_no_merges": {"method": "bridge"},
    "tpe": {"method": "optuna", "sampler": "tpe"},
    "gp": {"method": "optuna", "sampler": "gp"},
}


def main() -> None:
    """Print the share of the grid's hypervolume after each number of trainings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=20)
    parser.add_argument("--trainings", type=int, nargs="+", default=[2, 3, 4, 5, 6, 12])
    options = parse(parser, worlds=1, trainings=[3])
    worlds = [World(number) for number in range(options.worlds)]
    shares: dict[str, dict[str, float]] = {}
    gaps: dict[str, dict[str, float]] = {}
    reached: dict[str, float] = {}
    for name, settings in METHODS.items():
        outcomes = np.array([[world.search(settings, number) for number in options.trainings] for world in worlds])
        median = np.median(outcomes, axis=0)
        shares[name] = dict(zip(map(str, options.trainings), median[:, 0].round(4).tolist(), strict=True))
        gaps[name] = dict(zip(map(str, options.trainings), median[:, 1].round(4).tolist(), strict=True))
        enough = outcomes[:, :, 0] >= 0.95
        first = np.where(enough.any(axis=1), np.take(options.trainings, enough.argmax(axis=1)), np.inf)
        reached[name] = float(np.median(first)) / GRID
        print(f"{name}: share of the grid's hypervolume {shares[name]}, distance to the bound {gaps[name]}")
    figures = {
        "trainings_share": {name: round(v, 3) if np.isfinite(v) else None for name, v in reached.items()},
        "vs_optuna": {n: round(shares["bridge"][n] - max(shares["tpe"][n], shares["gp"][n]), 4) for n in shares["tpe"]},
        "hypervolume_share": shares,
        "bound_distance": gaps,
        "share_of_optimum": round(float(np.median([world.quality() for world in worlds])), 3),
    }
    print(json.dumps(figures))


def space(settings: dict[str, Any], trainings: int, **changes: Any) -> Space:
    """The space of a simulated search."""
    searched = {"chains": CHAIN, "beta": list(BETAS), "beta_over_lambda": [RATIOS[0], RATIOS[-1]]}
    return parse_space(
        small(chains=[], merges=[], constraint={"criterion": "harmlessness", "at_least": 0.6})
        | {"search": searched | settings | {"trainings": trainings}}
        | changes
    )


class World:
    """One SFT policy, and what each training, merge and sample gives; the same whichever search asks.

    Args:
        number: Seed.
        noise: See `NOISE`.
        answers: Sampled answers of each policy to each prompt.
    """

    def __init__(self, number: int, noise: float = NOISE, answers: int = 8) -> None:
        self.number, self.noise, self.answers = number, noise, answers
        sft = np.exp(0.8 * np.random.default_rng(number).standard_normal(SAFETY.shape))
        self.sft = sft / sft.sum(axis=1, keepdims=True)
        self.rates = {"helpfulness": self._rates(REWARD), "harmlessness": self._rates(SAFETY)}

    def _rates(self, values: Array) -> Array:
        """Each answer's win rate against the SFT policy's answers; shape (prompts, answers)."""
        outcome = (np.sign(values[:, :, None] - values[:, None, :]) + 1) / 2
        return np.asarray((outcome * self.sft[:, None, :]).sum(axis=2))

    def _rng(self, *key: float | None) -> np.random.Generator:
        return np.random.default_rng([self.number, *(0 if k is None else round(1000 * k) for k in key)])

    def policy(self, beta: float, ratio: float | None = None, q: float | None = None) -> Array:
        """Probabilities of a trained policy (one stage without a ratio), or of a merge."""
        if q is not None:
            first, second = np.log(self.policy(beta)), np.log(self.policy(beta, ratio))
            return _normalised(first + q**1.2 * (second - first) + self.noise / 3 * self._normal(beta, ratio, q))
        weight = 0.0 if ratio is None else 1 / ratio
        stages = 1 if ratio is None else 2
        logs = np.log(optimum(self.sft, 1 / beta, weight))
        return _normalised(logs + self.noise * np.sqrt(stages) * self._normal(beta, ratio, None))

    def _normal(self, *key: float | None) -> Array:
        return self._rng(*key).standard_normal(SAFETY.shape)

    def expected(self, policy: Array) -> dict[str, float]:
        """The exact win rates of a policy."""
        return {name: float((policy * rate).sum(axis=1).mean()) for name, rate in self.rates.items()}

    def drawn(self, beta: float, ratio: float | None = None, q: float | None = None) -> Array:
        """The sampled answers of a policy; shape (prompts, answers)."""
        rng = self._rng(beta, ratio, q, 1)
        return np.stack([rng.choice(SAFETY.shape[1], self.answers, p=row) for row in self.policy(beta, ratio, q)])

    def observe(self, known: Known, beta: float, ratio: float | None = None, q: float | None = None) -> None:
        """Enter a policy's win rates from its sampled answers."""
        drawn = self.drawn(beta, ratio, q)
        rates = {name: float(np.take_along_axis(rate, drawn, axis=1).mean()) for name, rate in self.rates.items()}
        chain = CHAIN if ratio is not None else CHAIN.partition(">")[0]
        known.observations[chain, beta, ratio, q] = Observation(chain, beta, ratio, q, rates)

    def preview(self, known: Known, beta: float) -> None:
        """Enter the preview of a path, from the sampled answers of all its policies."""
        own = [seen for seen in known.observations.values() if seen.beta == beta]
        ratios = sorted({seen.beta_over_lambda for seen in own if seen.q is None and seen.beta_over_lambda is not None})
        second = ratios[0]
        members: list[tuple[float | None, float | None]] = [(None, None), *((ratio, None) for ratio in ratios)]
        members += [(seen.beta_over_lambda, seen.q) for seen in own if seen.q is not None]
        drawn = np.stack([self.drawn(beta, *member) for member in members])
        source, prompt = (part.ravel() for part in np.indices(drawn.shape)[:2])
        logs = np.log(np.stack([self.policy(beta, *member) for member in members], axis=-1))
        trained = [Trained(i, second / ratio) for i, ratio in enumerate(ratios[1:], start=2)]
        curves = {
            name: ScoredAnswers(
                logs[prompt, drawn.ravel()], source, prompt, rate[prompt, drawn.ravel()], trained=trained
            ).curve(POINTS)
            for name, rate in self.rates.items()
        }
        known.paths[CHAIN, beta] = Path(
            POINTS * beta / second, {n: c.value for n, c in curves.items()}, {n: c.low for n, c in curves.items()}
        )

    def run(self, known: Known) -> None:
        """Carry a search out to its end."""
        while True:
            while (proposal := propose(known)) is not None:
                known.proposals.append(proposal)
            pending = known.pending
            if not pending:
                return
            for beta in dict.fromkeys(p.beta for p in pending):
                self.observe(known, beta)
                for p in pending:
                    if p.beta == beta:
                        self.observe(known, beta, p.beta_over_lambda, p.q)
                if isinstance(known.space.search, BridgeSearch):
                    self.preview(known, beta)

    @cached_property
    def grid(self) -> list[dict[str, float]]:
        """The exact win rates of the grid's policies."""
        return [self.expected(self.policy(beta, ratio)) for beta in BETAS for ratio in (None, *RATIOS)]

    @cached_property
    def bound(self) -> float:
        """A harmlessness that policies in the middle of the grid have."""
        return round(float(np.median([point["harmlessness"] for point in self.grid])), 3)

    def search(self, settings: dict[str, Any], trainings: int) -> tuple[float, float]:
        """One search.

        Returns:
            Its hypervolume over the grid's, and the smallest distance of a trained policy's harmlessness to the bound.
        """
        bounded = {"constraint": {"criterion": "harmlessness", "at_least": self.bound}}
        known = Known(space(settings, trainings, **bounded))
        self.run(known)
        seen = known.observations.values()
        points = [self.expected(self.policy(s.beta, s.beta_over_lambda, s.q)) for s in seen]
        trained = [point for s, point in zip(seen, points, strict=True) if s.q is None]
        distance = min(abs(point["harmlessness"] - self.bound) for point in trained)
        return hypervolume(points) / hypervolume(self.grid), distance

    def quality(self) -> float:
        """The share of the optimum that a two-stage training reaches."""
        return share_of_optimum(self.policy(BETAS[0], 2.0), self.sft, 1 / BETAS[0], 1 / 2.0)


def hypervolume(points: list[dict[str, float]]) -> float:
    """Area of the unit square that policies dominate."""
    x, y = (np.array([[point[name] for point in points]]) for name in ("helpfulness", "harmlessness"))
    return float(hypervolumes(x, y)[0])


def _normalised(logs: Array) -> Array:
    values = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(values / values.sum(axis=1, keepdims=True))


if __name__ == "__main__":
    main()
