"""Training settings: one model for each training method."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from sacpo.spaces.base import Fraction, Strict
from sacpo.spaces.model_loading import LoRA


class Training(Strict):
    """Settings that all training methods share. The optimizer is AdamW."""

    learning_rate: float = Field(gt=0, lt=1, description="peak learning rate, after the warm-up; required")
    epochs: int = Field(1, ge=1, description="passes over the training examples; default 1")
    batch_size: int = Field(
        64, ge=1, description="examples per update, over all workers and gradient accumulation; default 64"
    )
    lr_scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="course of the learning rate after the warm-up: cosine or linear decay to 0, or constant"
    )
    warmup_ratio: Fraction = Field(
        0.03, description="fraction of the updates in which the learning rate rises linearly from 0; default 0.03"
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay; the default 0 means none")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this L2 norm; default 1")
    adam_epsilon: float = Field(1e-8, gt=0, description="epsilon in AdamW's denominator; default 1e-8")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, slower; default false"
    )


class PolicyTraining(Training):
    """Settings that all methods which train policies share."""

    lora: LoRA | None = Field(
        None, description="train adapters on frozen weights; null, the default, trains all weights; {} has the defaults"
    )


class SFTTraining(PolicyTraining):
    """Settings of supervised fine-tuning on demonstrations."""

    not_hashed: ClassVar[frozenset[str]] = frozenset({"seed"})  # a training payload has a seed of its own

    seed: int = Field(
        0, ge=0, description="seed of the order of examples; the one SFT policy serves all `seeds` of the sweep"
    )


class DPOTraining(PolicyTraining):
    """Settings of DPO stages."""

    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = Field(
        "sigmoid", description="loss type as TRL's DPOConfig names it; sigmoid is the DPO paper's loss"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="assumed probability that a preference label is wrong; the default 0 means none"
    )


class KTOTraining(PolicyTraining):
    """Settings of KTO stages."""

    loss: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto", description="loss type as TRL's KTOConfig names it; kto is the KTO paper's loss"
    )
    kl_batch_size: int | None = Field(
        None,
        ge=2,
        description="examples over which one estimate of KTO's KL term is averaged, over all workers; "
        "null means batch_size",
    )

    def resolved(self) -> KTOTraining:
        """A copy whose `kl_batch_size` is a number: `batch_size` if it was None."""
        return self.model_copy(update={"kl_batch_size": self.kl_batch_size or self.batch_size})


class RewardTraining(Training):
    """Settings of the reward models that are trained as judges."""
