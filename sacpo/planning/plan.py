"""The plan of a sweep: its trials and the graph of content-addressed steps. `sacpo.planning.planner` makes it.

A plan is kept as `plan.json` in the results folder and in the store. A command that reads results, judges again or
exports reads that file and never plans again, so all of this works after data files moved, on another machine, and with
a newer version of this package.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from sacpo.data.prompts import Prompt
from sacpo.errors import SacpoError
from sacpo.hashing import content_id
from sacpo.planning.kinds import KINDS
from sacpo.planning.payloads import Frozen, Payload, RewardPayload
from sacpo.spaces.merging import FIRST, LINEAR, SECOND, Combination
from sacpo.spaces.search import Proposal
from sacpo.spaces.space import Space

MERGED_ROLES = (FIRST, SECOND)
"""Roles of two policies whose weights are merged: (1-q) x the first + q x the second, or another combination."""
MIXED_ROLES = ("mixed_first", "mixed_second")
"""Roles of two policies whose logits are mixed when they answer."""
FOR_COMPARISON = ("sentinel", "served")
"""Methods of trials that have answers only. They are judged in full, and neither on the front nor chosen."""


class Step(Frozen):
    """A unit of work.

    Attributes:
        id: Hash of kind, recipe, payload and parents.
        kind: A key of `KINDS`.
        recipe: Recipe version of the kind when the step was planned.
        payload: Everything else that decides the output.
        parents: Role (policy, data, answers, ...) to step id.
    """

    id: str
    kind: str
    label: str
    recipe: int
    payload: SerializeAsAny[Payload]
    parents: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _parse_payload(cls, data: Any) -> Any:
        """A payload in JSON form becomes the type that its kind has."""
        if isinstance(data, dict) and isinstance(data.get("payload"), dict):
            return data | {"payload": KINDS[data["kind"]].parse(data["payload"])}
        return data


class Trial(Frozen):
    """One policy of the sweep, evaluated: a row of the trial table. Steps are given by id.

    Attributes:
        policy: The step that produces the policy, as `policy`; for a merge the steps whose weights are merged by `q`,
            as `first` and `second`, with `origin` where task vectors are merged; or those whose logits are mixed, as
            `mixed_first` and `mixed_second`; empty for a sentinel or a served policy, which have answers only.
        combination: How the weights of `first` and `second` are merged; without meaning for other policies.
        kl_parameters: KL parameter of each stage of the chain: beta, then beta/lambda for every later stage.
        probabilities: The step that computes the exact probabilities; None outside the synthetic world.
        generate: Criterion to the step that answers its prompts.
        judge: Criterion to the step that judges the answers against the baseline's. For the baseline itself this is
            the A/A canary (empty where canaries are skipped).
        panel: Name of a further judge to the same mapping as `judge`.
        head_to_head: Id of another trial to the same mapping as `judge`, against that trial's answers.
        rounds: In a sweep that races, name of the judge ("" for the criterion's own) and criterion to the judge steps
            after the first round, whose steps are in `judge` and `panel`.
        likelihoods: Key of a family (`sacpo.planning.preview`) to the step that computes what this policy gives to the
            family's answers. No number of the trial's own row needs it, so the trial can be done without it.
    """

    trial_id: str
    label: str
    method: str
    chain: str
    policy: dict[str, str]
    kl_parameters: tuple[float, ...] = ()
    q: float | None = None
    combination: Combination = LINEAR
    seed: int | None = None
    probabilities: str | None = None
    generate: dict[str, str] = Field(default_factory=dict)
    judge: dict[str, str] = Field(default_factory=dict)
    panel: dict[str, dict[str, str]] = Field(default_factory=dict)
    head_to_head: dict[str, dict[str, str]] = Field(default_factory=dict)
    rounds: dict[str, dict[str, tuple[str, ...]]] = Field(default_factory=dict)
    likelihoods: dict[str, str] = Field(default_factory=dict)

    @property
    def beta(self) -> float | None:
        """KL parameter of the first stage."""
        return self.kl_parameters[0] if self.kl_parameters else None

    @property
    def beta_over_lambda(self) -> float | None:
        """KL parameter of the second stage; None unless the chain has exactly two stages."""
        return self.kl_parameters[1] if len(self.kl_parameters) == 2 else None

    @property
    def is_merge(self) -> bool:
        """Whether the policy is a merge of the weights of two others."""
        return MERGED_ROLES[0] in self.policy

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that this trial itself requires, in the order of its work."""
        measured = (self.probabilities,) if self.probabilities is not None else ()
        return (*self.policy.values(), *measured, *self.generate.values(), *(step for _, _, step in self.judge_steps()))

    def judge_steps(self) -> Iterator[tuple[str, str, str]]:
        """(panel judge's name or the other trial's id, criterion, step id); the name is "" for a criterion's judge."""
        for name, steps in ({"": self.judge} | self.panel | self.head_to_head).items():
            for criterion, first in steps.items():
                for step in (first, *self.rounds.get(name, {}).get(criterion, ())):
                    yield name, criterion, step


class Plan(Frozen):
    """A sweep's work.

    Attributes:
        space: The space that was expanded.
        trials: The trials; the first one is the baseline.
        steps: All steps by id.
        criteria: Criterion to the id of its prompts.
        prompt_sets: Prompts by the id that payloads name.
        notes: Remarks for the user, such as settings that no chain uses.
        canaries: Steps that try each judge on canned pairs. All of them must succeed before a policy is trained.
        inspection: The step that checks what the model will see; None in the synthetic world.
        proposals: What the space's search proposed so far, in order; these policies are trials too.
    """

    space: Space
    trials: tuple[Trial, ...]
    steps: dict[str, Step]
    criteria: dict[str, str]
    prompt_sets: dict[str, tuple[Prompt, ...]]
    notes: tuple[str, ...] = ()
    canaries: tuple[str, ...] = ()
    inspection: str | None = None
    proposals: tuple[Proposal, ...] = ()

    @property
    def prompts(self) -> dict[str, tuple[Prompt, ...]]:
        """The prompts of each criterion."""
        return {criterion: self.prompt_sets[key] for criterion, key in self.criteria.items()}

    @property
    def plan_id(self) -> str:
        """Identity of the work: the steps of all trials. Resources, paths and canaries do not change it."""
        steps = {step for trial in self.trials for step in (*trial.policy.values(), *trial.generate.values())}
        steps |= {step for trial in self.trials[1:] for step in trial.steps if step not in self.added_steps(trial)}
        return content_id("plan", {"steps": sorted(steps)})

    def added_steps(self, trial: Trial) -> set[str]:
        """Steps of judges that `python -m sacpo.judge` added to the plan and the space does not name."""
        evaluation = self.space.evaluation.criteria
        return {
            step
            for name, criterion, step in trial.judge_steps()
            if name in trial.panel and name not in evaluation[criterion].panel
        }

    def required_steps(self, trial: Trial) -> tuple[str, ...]:
        """The trial's steps, after its preconditions."""
        *before, against_itself = self.preconditions
        first = [step for precondition in before for step in precondition]
        return (*first, *(() if trial is self.baseline else against_itself), *trial.steps)

    def target_steps(self, trial: Trial) -> tuple[str, ...]:
        """The steps that a run carries out for a trial: what it requires, and what the preview needs of its policy."""
        return (*self.required_steps(trial), *trial.likelihoods.values())

    @property
    def preconditions(self) -> tuple[tuple[str, ...], ...]:
        """Steps that must succeed before any step that they do not depend on: inspection, canaries, the A/A test."""
        inspection = () if self.inspection is None else (self.inspection,)
        return inspection, self.canaries, tuple(self.baseline.judge.values())

    @property
    def baseline(self) -> Trial:
        """The trial of the SFT policy, against which all others are judged."""
        return self.trials[0]

    def ancestors(self, step_id: str) -> list[str]:
        """The step and all steps that it depends on, parents before children.

        What a race depends on is left out, since it belongs to other trials too.
        """
        order: dict[str, None] = {}

        def visit(current: str) -> None:
            if not KINDS[self.steps[current].kind].tolerates_failures:
                for parent in self.steps[current].parents.values():
                    visit(parent)
            order.setdefault(current)

        visit(step_id)
        return list(order)

    def trainings(self) -> tuple[int, int]:
        """Number of trainings that the sweep needs, and the number if no two trials shared one."""
        alone = [
            step
            for trial in self.trials
            for step in dict.fromkeys(s for end in trial.policy.values() for s in self.ancestors(end))
            if self.steps[step].kind == "train"
        ]
        judges = [step.id for step in self.steps.values() if isinstance(step.payload, RewardPayload)]
        return len({*alone, *judges}), len(alone) + len(judges)

    def to_json(self) -> str:
        """The content of `plan.json`."""
        return self.model_dump_json(indent=1)


def read_plan(content: bytes, source: str) -> Plan:
    """A plan from `plan.json`.

    Args:
        content: The file's content.
        source: Where it was read from, for the error.

    Raises:
        SacpoError: it is damaged, or written by an incompatible version of this package.
    """
    try:
        return Plan.model_validate_json(content)
    except (ValidationError, KeyError) as error:
        reason = str(error).splitlines()[0] if isinstance(error, ValidationError) else f"unknown kind of step {error}"
        raise SacpoError(
            f"{source} cannot be read ({reason}): it is damaged, or was written by another version of sacpo; run the "
            "sweep's own command again in a new results folder with the same --store, which repeats no finished step"
        ) from error
