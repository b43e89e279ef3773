"""Payloads of the kinds of steps that judge, see `sacpo.planning.payloads`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from sacpo.data.prompts import Prompt
from sacpo.planning.payloads import Content, Frozen, Payload
from sacpo.planning.prompt_parts import Part, prompts_of_part
from sacpo.spaces.constraints import Constraint
from sacpo.spaces.evaluation import JudgeSettings


class SyntheticScale(Frozen):
    """Inputs of a judge that scores by the synthetic world's own values."""

    world: int


class RewardModelContent(Frozen):
    """Inputs of a judge that is a reward model from a folder or the hub."""

    content: Content


class AnnotationFile(Frozen):
    """Inputs of a judge whose verdicts are in a file."""

    annotations: Content


class TrainedModelFormat(Frozen):
    """Inputs of a judge that the sweep trains; the model itself is the parent `model`."""

    prompt_template: str
    max_length: int


class LLMInstructions(Frozen):
    """Inputs of a judge that is asked in words."""

    rubric: str
    prompt_version: int


JudgeInputs = SyntheticScale | RewardModelContent | AnnotationFile | TrainedModelFormat | LLMInstructions


class Round(Frozen):
    """Some of a criterion's prompts, about which one policy's verdicts are asked for in one round of a race.

    Attributes:
        trial: Id of the trial that is judged.
        part: The part of the prompts that the round belongs to.
        first, last: The round has the prompts after this share of the part, up to that one.
    """

    trial: str
    part: Part
    first: float
    last: float

    def of(self, categories: Mapping[str, str]) -> list[str]:
        """The ids of the round's prompts, of those of the criterion and their categories."""
        prompts = prompts_of_part(categories, self.part)
        return prompts[int(self.first * len(prompts)) : int(self.last * len(prompts))]

    def count(self, prompts: Sequence[Prompt], total: int) -> int:
        """The number of the round's prompts; without the prompts at hand about as many as of `total` prompts."""
        if prompts:
            return len(self.of({prompt.prompt_id: prompt.category for prompt in prompts}))
        return math.ceil(total * (self.last - self.first) * (1.0 if self.part == "all" else 0.5))


class JudgePayload(Payload):
    """`judge`: verdicts of one judge on one criterion, for the answers of two `generate` steps.

    Attributes:
        round: The prompts that are asked, in a sweep that races; None for all.
    """

    criterion: str
    judge: JudgeSettings
    inputs: JudgeInputs
    round: Round | None = None


class RacePayload(Payload):
    """`race`: which policies are not judged further. The parents are all judge steps of the rounds so far.

    Attributes:
        constraints: Constraints of the choice that policies race for; without any they race for the front.
        criteria: The criteria that decide: the two of the front, or the objective and the constrained ones.
        part: The part of the prompts by whose means the policies will be compared.
        most_lost: Policies are stopped, from that with the smallest chance on, as long as the sum of the chances of all
            that were stopped so far, the expected number of those that would have got there, is at most this.
        min_coverage: A policy with a smaller fraction of decided verdicts is not compared.
    """

    constraints: tuple[Constraint, ...] = ()
    criteria: tuple[str, ...]
    part: Part
    most_lost: float
    min_coverage: float


class CanaryPayload(JudgePayload):
    """`canary`: verdicts of one judge on canned pairs whose better answer is known.

    Attributes:
        pairs: Version of the canned pairs.
        sentences: Pairs in plain English, or in the synthetic world's sentences.
        max_fooled_fraction: Largest fraction of manipulated answers that the judge may prefer.
    """

    pairs: int
    sentences: Literal["text", "synthetic"]
    max_fooled_fraction: float = 0.1

    @property
    def is_manipulable(self) -> bool:
        """Whether words can reach the judge: the synthetic world's own judges know its sentences alone."""
        return self.sentences == "text" or self.judge.calls_endpoint
