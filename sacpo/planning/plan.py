"""What a space expands into: trials, and a graph of content-addressed steps (`sacpo.planning.planner` does it)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from sacpo.data.prompts import Prompt
from sacpo.spaces.space import Space

Kind = Literal["model", "preferences", "data", "reference", "train", "probabilities", "generate", "judge", "canary"]

# A recipe's version goes up when the code that carries the step out changes its output on purpose.
RECIPES: dict[str, int] = {
    "model": 1,
    "preferences": 2,
    "data": 1,
    "reference": 1,
    "train": 4,
    "probabilities": 1,
    "generate": 2,
    "judge": 2,
    "canary": 1,
}


@dataclass(frozen=True)
class Step:
    """A unit of work.

    Attributes:
        payload: Everything that can change the output, with the parents by id; the id is its hash.
        parents: Role (policy, data, answers, ...) to step id.
        local: Where to find here what the payload names by content; not hashed.
    """

    id: str
    kind: Kind
    label: str
    payload: dict[str, Any]
    parents: dict[str, str]
    local: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One policy of the sweep, evaluated: a row of the table. Steps are given by id.

    Attributes:
        policy: The step that makes the policy, as `policy`; for a merge the steps whose weights are averaged by `q`, as
            `first` and `second`; nothing for a sentinel, which has answers only.
        generate: Criterion to the step that answers its prompts.
        judge: Criterion to the step that judges the answers against the baseline's; the baseline's own is the A/A
            canary (none where canaries are skipped).
        panel: Name of a further judge to the like of `judge`.
        head_to_head: Id of another trial to the like of `judge`, against that trial's answers.
    """

    trial_id: str
    label: str
    method: str
    chain: str
    policy: dict[str, str]
    kl_parameters: tuple[float, ...] = ()
    q: float | None = None
    seed: int | None = None
    probabilities: str | None = None
    generate: dict[str, str] = field(default_factory=dict)
    judge: dict[str, str] = field(default_factory=dict)
    panel: dict[str, dict[str, str]] = field(default_factory=dict)
    head_to_head: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def beta(self) -> float | None:
        return self.kl_parameters[0] if self.kl_parameters else None

    @property
    def beta_over_lambda(self) -> float | None:
        """The second stage's KL parameter; none where the chain has not exactly two stages."""
        return self.kl_parameters[1] if len(self.kl_parameters) == 2 else None

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that this trial asks for itself, in the order it asks."""
        measured = (self.probabilities,) if self.probabilities is not None else ()
        return (*self.policy.values(), *measured, *self.generate.values(), *(step for _, _, step in self.judge_steps()))

    def judge_steps(self) -> Iterator[tuple[str, str, str]]:
        """(name of the panel judge or id of the other trial, criterion, step) of each judging; the main one is ""."""
        for name, steps in ({"": self.judge} | self.panel | self.head_to_head).items():
            for criterion, step in steps.items():
                yield name, criterion, step


@dataclass(frozen=True)
class Plan:
    """A sweep's work.

    Attributes:
        canaries: Steps that try each judge on canned pairs; all of them come before any training of a policy.
    """

    space: Space
    trials: tuple[Trial, ...]
    steps: dict[str, Step]
    prompts: dict[str, list[Prompt]]
    notes: tuple[str, ...]
    canaries: tuple[str, ...] = ()

    def required_steps(self, trial: Trial) -> tuple[str, ...]:
        """The trial's steps, after those that must have gone well before."""
        canaries, against_itself = self.preconditions
        return (*canaries, *(() if trial is self.baseline else against_itself), *trial.steps)

    @property
    def preconditions(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What must have gone well before all that it does not need itself: canaries; the baseline against itself."""
        return self.canaries, tuple(self.baseline.judge.values())

    @property
    def baseline(self) -> Trial:
        """The SFT policy's trial, against which all others are judged."""
        return self.trials[0]

    def ancestors(self, step_id: str) -> list[str]:
        """The step and everything it needs, parents before children."""
        seen: dict[str, None] = {}

        def visit(current: str) -> None:
            for parent in self.steps[current].parents.values():
                visit(parent)
            seen.setdefault(current)

        visit(step_id)
        return list(seen)

    def trainings(self) -> tuple[int, int]:
        """How many trainings the sweep needs, and how many it would need if no trial shared one."""
        alone = [
            step
            for trial in self.trials
            for step in dict.fromkeys(s for end in trial.policy.values() for s in self.ancestors(end))
            if self.steps[step].kind == "train"
        ]
        judges = [s.id for s in self.steps.values() if s.kind == "train" and s.payload["method"] == "reward"]
        return len({*alone, *judges}), len(alone) + len(judges)
