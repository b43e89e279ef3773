"""The constraint of a space: the win rate that a policy must reach, and how sure this must be."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler

from sacpo.spaces.base import Name, Strict, as_list


class Constraint(Strict):
    """A bound on one criterion: E[g] >= b of the constrained problem, with the win rate for g."""

    criterion: Name = Field(description="criterion of `evaluation` whose win rate is bounded, such as harmlessness")
    at_least: float = Field(gt=0, lt=1, description="smallest win rate against the SFT policy, ties half")
    confidence: float = Field(
        0.95, ge=0.5, lt=1, description="probability with which a policy that violates it is recognised; default 0.95"
    )


class _OneOrList:
    """JSON schema of a list that may also be given as its only item."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


Constraints = Annotated[list[Constraint], BeforeValidator(as_list), _OneOrList()]
