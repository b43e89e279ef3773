"""Loads policies from the store, for steps that answer or score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from sacpo.data.batching import with_pad_token
from sacpo.steps.merge import merged


def load_policy(parents: dict[str, Path], q: float | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """A policy in evaluation mode on this process's device, and its tokenizer, which pads on the left.

    Args:
        parents: The folder of `policy`, or those of `first` and `second`, whose weights are averaged.
        q: The second's weight in the average; None: no merge.
    """
    tokenizer = AutoTokenizer.from_pretrained(parents["policy" if q is None else "first"], padding_side="left")
    model: Any
    if q is None:
        model = AutoModelForCausalLM.from_pretrained(parents["policy"], dtype="auto")
    else:
        model = merged(parents["first"], parents["second"], q)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), with_pad_token(tokenizer)


def stop_ids(model: Any) -> list[int]:
    """Ids of the tokens that end an answer of a policy, as its base model declared them."""
    ids = model.generation_config.eos_token_id
    return list(ids) if isinstance(ids, list) else [ids]
