"""Private parts of transformers."""

from __future__ import annotations

from typing import Any


def attention_of(model: Any) -> str:
    """Name of the implementation of attention that a model uses.

    `from_pretrained` takes it as `attn_implementation`, but no public attribute has it afterwards.
    """
    return str(model.config._attn_implementation)
