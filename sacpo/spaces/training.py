"""What the models of a space are built from: strictness, types that several share, and a stage's training settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema


class Strict(BaseModel):
    """Unknown keys, type coercion and mutation are all refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def scalar_or_list(item: dict[str, Any]) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]})


KL_SCHEMA = {"type": "number", "exclusiveMinimum": 0}
KLParameter = Annotated[float, Field(gt=0, allow_inf_nan=False)]
KLGrid = Annotated[list[KLParameter], Field(min_length=1), BeforeValidator(as_list), scalar_or_list(KL_SCHEMA)]
RatioGrid = Annotated[
    list[Annotated[float, Field(ge=0, le=1)]],
    Field(min_length=1),
    BeforeValidator(as_list),
    scalar_or_list({"type": "number"}),
]
Share = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Training(Strict):
    """Settings of one kind of stage. The optimizer is AdamW."""

    learning_rate: float = Field(gt=0, lt=1)
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(64, ge=1, description="examples per update, over all workers and accumulation")
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Share = 0.03
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    adam_epsilon: float = Field(1e-8, gt=0)
    gradient_checkpointing: bool = False


class SFTTraining(Training):
    seed: int = Field(0, ge=0, description="one SFT policy serves every seed of the sweep")


class DPOTraining(Training):
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)


class KTOTraining(Training):
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    kl_batch_size: int | None = Field(
        None, ge=2, description="examples that one estimate of KTO's KL term averages; batch_size when absent"
    )
