"""Batches of sequences of similar length, and their padding. Every forward pass over many sequences uses these.

    batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]
    with_pad_token(tokenizer) -> tokenizer

The module imports no torch and no transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Positions of the sequences, batch by batch, the longest sequences first.

    Sequences of similar length share a batch, so that a forward pass computes little padding. The longest batch comes
    first, so that a lack of memory shows at once.

    Args:
        lengths: Length of each sequence.
        batch_size: Sequences in a batch; the last batch may have fewer.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def with_pad_token(tokenizer: Any) -> Any:
    """The tokenizer; if it has no padding token, it now pads with its end-of-sequence token.

    Args:
        tokenizer: A tokenizer of transformers. It is changed in place.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
