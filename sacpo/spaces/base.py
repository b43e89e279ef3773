"""Base class and field types that the models of a space share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema


class Strict(BaseModel):
    """Base of all settings: immutable, and unknown keys and type coercion are errors.

    Attributes:
        not_hashed: Fields that never count towards the id of a step, because they only say where an input is or how it
            is reached. The step's payload holds the identity of the input beside them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    not_hashed: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class InputPath:
    """Marks a setting that names an input; the loader resolves it against the folder of the space file.

    Attributes:
        hub: The setting may also be a Hugging Face hub id; the model then has a field `revision`.
        model: A local path must be the folder of a model (`sacpo.spaces.model_folder`).
        several: The setting may also be a glob, or a list of paths and globs.
        needed_to_plan: False for a file that may be missing while a plan is only shown (`--dry-run`).
    """

    hub: bool = False
    model: bool = False
    several: bool = False
    needed_to_plan: bool = True


LocalPath = Annotated[str, InputPath()]
ModelPath = Annotated[str, InputPath(hub=True, model=True)]


def as_list(value: Any) -> Any:
    """The value if it is a list, else a list that holds the value."""
    return value if isinstance(value, list) else [value]


def scalar_or_list(item: dict[str, Any]) -> WithJsonSchema:
    """JSON schema of a setting that takes one value or a list of at least one.

    Args:
        item: JSON schema of one value.
    """
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


class OneOrList:
    """JSON schema of a list that may also be given as its only item."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        array = handler(schema)
        return {"anyOf": [array["items"], array]}


KL_SCHEMA = {"type": "number", "exclusiveMinimum": 0}
KLParameter = Annotated[float, Field(gt=0, allow_inf_nan=False)]
KLGrid = Annotated[list[KLParameter], Field(min_length=1), BeforeValidator(as_list), scalar_or_list(KL_SCHEMA)]
RatioGrid = Annotated[
    list[Annotated[float, Field(ge=0, le=1)]],
    Field(min_length=1),
    BeforeValidator(as_list),
    scalar_or_list({"type": "number"}),
]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
