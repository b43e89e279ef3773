"""The models of `chains` and `merges`: which policies a sweep trains, and which it merges from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from sacpo.spaces.base import KL_SCHEMA, KLGrid, KLParameter, RatioGrid, Strict, as_list
from sacpo.spaces.chains import Chain
from sacpo.spaces.merging import Combinations, only_linear


def _nested(value: Any) -> Any:
    """`0.1`, `[0.1, 0.05]` and `[[0.1], [0.05]]` all mean one list of values for each re-alignment stage."""
    values = as_list(value)
    return values if any(isinstance(v, list) for v in values) else [values]


RealignmentGrid = Annotated[
    list[KLGrid],
    Field(min_length=1),
    BeforeValidator(_nested),
    WithJsonSchema(
        {
            "anyOf": [
                KL_SCHEMA,
                {"type": "array", "items": {"anyOf": [KL_SCHEMA, {"type": "array", "items": KL_SCHEMA}]}},
            ]
        },
    ),
]


class ChainGrid(Strict):
    """A chain of stages. Every combination of the values becomes a trial; so does every prefix of the chain."""

    chain: Chain = Field(description="stages, such as dpo:helpfulness>dpo:harmlessness")
    beta: KLGrid = Field(description="values of the first stage's KL parameter beta: one number or a list")
    beta_over_lambda: RealignmentGrid | None = Field(
        None,
        description="values of the second stage's KL parameter beta/lambda: one number or a list; a list of lists for "
        "the second, third, ... stage; null for a chain of one stage",
    )


class Parent(Strict):
    """A chain with one value per stage: one policy that a merge starts from."""

    chain: Chain = Field(description="stages, such as dpo:helpfulness")
    beta: KLParameter = Field(description="the first stage's KL parameter beta")
    beta_over_lambda: RealignmentGrid | None = Field(
        None, description="KL parameters beta/lambda of the later stages, one value per stage; null for one stage"
    )


class _LastStage(Strict):
    """The policies before and after a chain's last stage, and the latter's weights."""

    chain: Chain = Field(description="chain of two or more stages")
    beta: KLGrid = Field(description="values of the first stage's KL parameter beta: one number or a list")
    beta_over_lambda: RealignmentGrid = Field(
        description="values of the later stages' KL parameter beta/lambda, as in `chains`"
    )
    q: RatioGrid = Field(description="weights of the policy after the last stage, from 0 to 1: one number or a list")


_COMBINATION = (
    "how weights are merged: {kind: linear} (default), {kind: slerp}, {kind: ties, density: 0.5} or "
    "{kind: dare, density: 0.5}, or a list of these"
)


class PSacpo(_LastStage):
    """(1-q) x the policy before the chain's last stage + q x the policy after it (paper, section 6)."""

    method: Literal["p-sacpo"] = Field(description="merges the policies before and after a chain's last stage")
    combination: Combinations = Field(default_factory=only_linear, description=_COMBINATION)


class LogitMix(_LastStage):
    """Both policies answer together: p proportional to p1^(1-q) p2^q for each token (DeRa, MOD)."""

    method: Literal["logit-mix"] = Field(
        description="mixes the next-token logits of the policies before and after a chain's last stage when they answer"
    )


class NaiveMerge(Strict):
    """(1-q) x `first` + q x `second`, two policies trained independently from the SFT policy."""

    method: Literal["naive-merge"] = Field(description="merges two policies that were trained independently")
    first: Parent = Field(description="policy with weight 1-q")
    second: Parent = Field(description="policy with weight q")
    q: RatioGrid = Field(description="weights of `second`, from 0 to 1: one number or a list")
    combination: Combinations = Field(default_factory=only_linear, description=_COMBINATION)


Merge = Annotated[PSacpo | LogitMix | NaiveMerge, Field(discriminator="method")]
