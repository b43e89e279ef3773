"""Families of policies along one last stage of a chain, and the steps that a preview of each needs.

A family has the policy before the last stage, the policies after it (one for each KL parameter), and weight merges of
the two ends. The one with the smallest KL parameter is the most conservative: it has the largest lambda, L.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sacpo.planning.graph import Graph
from sacpo.planning.payloads import LikelihoodsPayload
from sacpo.planning.plan import Trial
from sacpo.spaces.merging import LINEAR
from sacpo.spaces.space import Space


@dataclass(frozen=True)
class Family:
    """The policies of one path.

    Attributes:
        first: The policy before the chain's last stage (lambda = 0).
        second: The most conservative policy after it (lambda = L).
        trained: The other policies after it, by descending KL parameter.
        stones: Linear weight merges of the first policy and one of the others, 0 < q < 1.
    """

    first: Trial
    second: Trial
    trained: tuple[Trial, ...]
    stones: tuple[Trial, ...]

    @property
    def members(self) -> tuple[Trial, ...]:
        """All policies, the two ends first."""
        return (self.first, self.second, *self.trained, *self.stones)

    @property
    def key(self) -> str:
        """The name of the family in `Trial.likelihoods`."""
        return self.second.trial_id

    def position(self, trial: Trial) -> float:
        """lambda / L of a policy that was trained by the last stage."""
        return self.second.kl_parameters[-1] / trial.kl_parameters[-1]


def families(trials: Iterable[Trial]) -> Iterator[Family]:
    """Every family that has both ends, in the order of the trials."""
    trials = tuple(trials)
    groups: dict[tuple[object, ...], list[Trial]] = {}
    for trial in trials:
        if trial.method == "sacpo":
            groups.setdefault((trial.chain, trial.kl_parameters[:-1], trial.seed), []).append(trial)
    for (chain, before, seed), group in groups.items():
        start = str(chain).rpartition(">")[0], before, seed
        first = next((t for t in trials if t.q is None and (t.chain, t.kl_parameters, t.seed) == start), None)
        if first is None:
            continue
        *trained, second = sorted(group, key=lambda trial: -trial.kl_parameters[-1])
        stones = (
            t
            for t in trials
            if t.method == "p-sacpo" and t.policy["first"] == first.policy["policy"] and t.q not in (0.0, 1.0)
            and t.combination == LINEAR
            and (t.chain, t.kl_parameters[:-1], t.seed) == (chain, before, seed)
        )  # fmt: skip
        yield Family(first, second, tuple(trained), tuple(stones))


def with_likelihoods(trials: Iterable[Trial], graph: Graph, space: Space) -> list[Trial]:
    """The trials with a step for each policy of a family: what it gives to the answers of the whole family."""
    by_id = {trial.trial_id: trial for trial in trials}
    for family in families(by_id.values()):
        steps = dict.fromkeys(step for member in family.members for step in member.generate.values())
        answers = {f"answers{number}": step for number, step in enumerate(steps)}
        for member in family.members:
            payload = LikelihoodsPayload(prompt_template=space.prompt_template, q=member.q, loading=space.model.loading)
            label = f"likelihoods of {family.second.label} by {member.label}"
            step = graph.add("likelihoods", label, payload, member.policy | answers)
            trial = by_id[member.trial_id]
            by_id[member.trial_id] = trial.model_copy(update={"likelihoods": trial.likelihoods | {family.key: step}})
    return list(by_id.values())
