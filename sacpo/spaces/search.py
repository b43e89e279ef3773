"""The search: which policies may be trained while the sweep runs, how many, and by which method they are chosen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from sacpo.spaces.base import KL_SCHEMA, KLGrid, KLParameter, Strict, as_list, scalar_or_list
from sacpo.spaces.chains import Chain

SearchedChains = Annotated[
    list[Chain], Field(min_length=1), BeforeValidator(as_list), scalar_or_list({"type": "string"})
]
Range = Annotated[
    list[KLParameter],
    Field(min_length=2, max_length=2),
    WithJsonSchema({"type": "array", "items": KL_SCHEMA, "minItems": 2, "maxItems": 2}),
]
InnerRatios = Annotated[
    list[Annotated[float, Field(gt=0, lt=1)]], BeforeValidator(as_list), scalar_or_list({"type": "number"})
]


class _Search(Strict):
    trainings: int = Field(
        ge=1, description="stages that the search may train, for each seed, beyond those of `chains` and `merges`"
    )
    chains: SearchedChains = Field(description="chains of two stages that are searched: one or a list")
    beta: KLGrid = Field(description="values of beta that are searched: one number or a list")
    beta_over_lambda: Range = Field(
        description="smallest and largest beta/lambda: the most and the least conservative policy"
    )
    q: InnerRatios = Field(
        default_factory=list,
        description="weights of p-sacpo merges that may be tried, between 0 and 1: one number or a list; the default "
        "is none",
    )


class BridgeSearch(_Search):
    """The ends of each path first, then the lambda at which the preview expects the constraints to be satisfied."""

    method: Literal["bridge"] = Field(
        description="trains the two ends of each chain and beta, then where its preview satisfies the constraints"
    )


class OptunaSearch(_Search):
    """Optuna's samplers, with every criterion as an objective and the constraints as constraints."""

    method: Literal["optuna"] = Field(description="a sampler of Optuna (extra `optuna`), several objectives at once")
    sampler: Literal["tpe", "gp"] = Field(
        "tpe", description="tree-structured Parzen estimator (tpe, the default) or Gaussian process (gp)"
    )
    seed: int = Field(0, ge=0, description="seed of the sampler; default 0")


Search = Annotated[BridgeSearch | OptunaSearch, Field(discriminator="method")]


class Proposal(Strict):
    """A policy that a search proposed.

    Attributes:
        beta_over_lambda: KL parameter of the second stage.
        q: Weight of the second stage's policy in a p-sacpo merge; None for that policy itself.
        reason: Why it was proposed.
    """

    chain: str
    beta: float
    beta_over_lambda: float
    q: float | None = None
    reason: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies the policy."""
        return self.chain, self.beta, self.beta_over_lambda, self.q

    @property
    def label(self) -> str:
        """Such as `dpo:helpfulness@2>dpo:harmlessness@1.3`, as in the tables."""
        first, _, second = self.chain.partition(">")
        inner = f"{first}@{self.beta:g}>{second}@{self.beta_over_lambda:g}"
        return inner if self.q is None else f"p-sacpo q={self.q:g} ({inner})"
