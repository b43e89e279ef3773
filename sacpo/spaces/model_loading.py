"""How the weights of a policy are loaded, and the adapters that a stage may train instead of all weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from sacpo.spaces.base import Fraction, Strict

ALL_LINEAR = "all-linear"
_OUTPUTS = ("lm_head", "embed_out", "output_layer")

Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"]
Quantization = Literal["nf4", "fp4"]


class Loading(Strict):
    """How every step loads the base of a policy.

    Attributes:
        attn_implementation: transformers' name of an implementation of attention; None lets transformers choose.
        quantization: Type of the 4-bit numbers of the frozen base's linear layers (bitsandbytes); None keeps `dtype`.
    """

    attn_implementation: Attention | None = None
    quantization: Quantization | None = None

    @property
    def needs_accelerator(self) -> bool:
        """Whether no CPU can load a model like this."""
        return self.attn_implementation is not None and self.attn_implementation.startswith("flash_")


def _targets(value: Any) -> Any:
    """Names of modules in one order without repetition, none of which is an output layer."""
    if value == ALL_LINEAR:
        return value
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"must be {ALL_LINEAR} or a list of module names, such as [q_proj, v_proj]")
    outputs = [name for name in value if name.rpartition(".")[2] in _OUTPUTS]
    if outputs:
        raise ValueError(
            f"{', '.join(outputs)} cannot have an adapter: DPO and KTO compute log-probabilities from the weights of "
            "the output layer directly; leave it out"
        )
    return sorted(set(value))


class LoRA(Strict):
    """Low-rank adapters (Hu et al. 2021): W x + alpha / rank x B A x, of which only A and B are trained."""

    rank: int = Field(16, ge=1, description="rank of the adapters; default 16")
    alpha: int = Field(32, ge=1, description="the adapters' output is multiplied by alpha / rank; default 32")
    dropout: Fraction = Field(0.0, description="dropout of the adapters' input in training; the default 0 means none")
    targets: Annotated[
        str | list[str],
        BeforeValidator(_targets),
        WithJsonSchema({"anyOf": [{"const": ALL_LINEAR}, {"type": "array", "items": {"type": "string"}}]}),
    ] = Field(
        ALL_LINEAR,
        description="modules that get an adapter: all-linear (default; the output layer never has one), or names such "
        "as [q_proj, v_proj]",
    )
