"""How the base of a policy is loaded: the implementation of attention, and 4-bit numbers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from sacpo.compat.transformers import attention_of
from sacpo.spaces.model_loading import Loading

_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def load_options(loading: Loading, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained`.

    Args:
        loading: The settings.
        dtype: Number format in which a 4-bit model computes.
    """
    options: dict[str, Any] = {}
    if loading.attn_implementation is not None:
        options["attn_implementation"] = loading.attn_implementation
    if loading.quantization is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=loading.quantization,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    return options


def effective_loading(model: Any, requested: Loading) -> dict[str, str | None]:
    """How a model was loaded; an implementation of attention that transformers may choose counts as not requested."""
    attention = None if requested.attn_implementation is None else attention_of(model)
    is_quantized = getattr(model, "is_loaded_in_4bit", False)
    quantization = model.config.quantization_config.bnb_4bit_quant_type if is_quantized else None
    return {"attn_implementation": attention, "quantization": quantization}


def missing_support(loading: Loading) -> list[str]:
    """What this machine lacks for these settings, with the way out; empty if nothing."""
    problems = []
    if loading.quantization is not None and find_spec("bitsandbytes") is None:
        problems.append(
            f"model.quantization is {loading.quantization}, which needs bitsandbytes: pip install "
            "'sacpo[quantization]', or leave the setting out"
        )
    package = _PACKAGES.get(loading.attn_implementation or "")
    if package is not None and find_spec(package) is None:
        problems.append(
            f"model.attn_implementation is {loading.attn_implementation}, which needs the package {package}; install "
            "it, or take sdpa, which torch has built in"
        )
    if loading.needs_accelerator and not torch.cuda.is_available():
        problems.append(
            f"model.attn_implementation is {loading.attn_implementation}, which needs an NVIDIA or AMD GPU; take sdpa"
        )
    return problems


def computing_dtype(trainer: Any) -> torch.dtype:
    """Number format of a trainer's forward pass. Its weights may be float32 all the same, to keep small updates."""
    dtype: torch.dtype = torch.bfloat16 if trainer.args.bf16 else trainer.model.dtype
    return dtype
