"""How a merge combines the weights of two policies: the one table of the kinds of merges.

Each kind names its own parameters and writes itself as a configuration of mergekit (https://github.com/arcee-ai/mergekit).
`sacpo.steps.merge` carries the configuration out in memory by mergekit's own functions, and an export has it as
`mergekit.yaml`, so both are one merge.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from sacpo.spaces.base import OneOrList, Strict, as_list

ORIGIN = "origin"
"""Role of the policy that task vectors start from: the SFT policy, which is the model itself without an sft stage."""
FIRST, SECOND = "first", "second"
"""Roles of the policies that are merged."""


class _Combination(Strict):
    """Base of the kinds of merges.

    Attributes:
        uses_origin: Whether differences from the SFT policy (task vectors) are merged, not the weights themselves.
        draws: Whether random numbers decide which weights are kept.
    """

    uses_origin: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    kind: str

    @property
    def text(self) -> str:
        """The kind with its parameters, such as `ties density=0.2`; parameters at their defaults are left out."""
        fields = type(self).model_fields
        given = {name: value for name, value in self if name != "kind" and value != fields[name].default}
        return " ".join([self.kind, *(f"{name}={value}".lower() for name, value in given.items())])

    @property
    def keeps_ends(self) -> bool:
        """Whether q = 0 and q = 1 give the parents themselves."""
        return True

    def recipe(self, q: float) -> dict[str, Any]:
        """The merge as a configuration of mergekit, in which models have the names of their roles.

        Args:
            q: Weight of the second policy.
        """
        raise NotImplementedError


class Linear(_Combination):
    """(1-q) x first + q x second."""

    kind: Literal["linear"] = Field(description="(1-q) x the first policy's weights + q x the second's")

    def recipe(self, q: float) -> dict[str, Any]:
        """The configuration of mergekit's `linear`."""
        models = [{"model": FIRST, "parameters": {"weight": 1 - q}}, {"model": SECOND, "parameters": {"weight": q}}]
        return {"merge_method": "linear", "models": models}


class Slerp(_Combination):
    """Spherical interpolation (Shoemake 1985), tensor by tensor.

    mergekit interpolates tensors linearly whose cosine similarity is above 0.9995 in absolute value.
    """

    kind: Literal["slerp"] = Field(
        description="along the arc between the two policies, tensor by tensor; where their cosine similarity is above "
        "0.9995, linearly"
    )

    def recipe(self, q: float) -> dict[str, Any]:
        """The configuration of mergekit's `slerp`."""
        models = [{"model": FIRST}, {"model": SECOND}]
        return {"merge_method": "slerp", "base_model": FIRST, "models": models, "parameters": {"t": q}}


class _TaskVectors(_Combination):
    """A kind that merges differences from the SFT policy, of which a part is kept."""

    uses_origin: ClassVar[bool] = True

    density: float

    @property
    def keeps_ends(self) -> bool:
        """Nothing is trimmed or dropped at density 1."""
        return self.density == 1

    def _recipe(self, method: str, q: float, parameters: dict[str, float | bool]) -> dict[str, Any]:
        models = [
            {"model": role, "parameters": {"weight": weight, "density": self.density}}
            for role, weight in ((FIRST, 1 - q), (SECOND, q))
        ]
        return {"merge_method": method, "base_model": ORIGIN, "models": models, "parameters": parameters}


class Ties(_TaskVectors):
    """TIES (Yadav et al. 2023, https://arxiv.org/abs/2306.01708): trim, elect signs, mean of those that agree."""

    kind: Literal["ties"] = Field(
        description="of the two policies' differences from the SFT policy, each tensor's largest entries are kept; "
        "where signs differ, the larger weighted one decides; entries that agree are averaged with weights 1-q and q"
    )
    density: float = Field(gt=0, le=1, description="share of each tensor's entries that are kept; the paper has 0.2")

    def recipe(self, q: float) -> dict[str, Any]:
        """The configuration of mergekit's `ties`."""
        return self._recipe("ties", q, {"normalize": True})


class Dare(_TaskVectors):
    """DARE (Yu et al. 2024, https://arxiv.org/abs/2311.03099): drop entries at random, rescale, and average.

    What is kept is divided by `density`, which is the paper's 1 / (1 - p); mergekit's own `rescale` would keep the sum
    of absolute values instead, so it is off, and mergekit's `lambda` has the factor.
    """

    draws: ClassVar[bool] = True

    kind: Literal["dare"] = Field(
        description="of the two policies' differences from the SFT policy, entries are kept at random and divided by "
        "`density`; then they are averaged with weights 1-q and q"
    )
    density: float = Field(gt=0, le=1, description="probability that an entry is kept, 1-p in the paper")
    elect_signs: bool = Field(
        False,
        description="combine what is kept as `ties` does, with signs elected, instead of averaging; default false",
    )
    seed: int = Field(0, ge=0, description="seed of the entries that are kept, the same for every q; default 0")

    def recipe(self, q: float) -> dict[str, Any]:
        """The configuration of mergekit's `dare_linear` or `dare_ties`."""
        method = "dare_ties" if self.elect_signs else "dare_linear"
        rescaled = {"rescale": False, "lambda": 1 / self.density}
        return self._recipe(method, q, {"normalize": self.elect_signs} | rescaled)


Combination = Annotated[Linear | Slerp | Ties | Dare, Field(discriminator="kind")]
LINEAR = Linear(kind="linear")


def only_linear() -> list[Combination]:
    """The default of a merge."""
    return [LINEAR]


Combinations = Annotated[list[Combination], Field(min_length=1), BeforeValidator(as_list), OneOrList()]
