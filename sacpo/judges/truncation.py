"""Detects prompts that an endpoint cut: it counted far fewer tokens than the prompt must have.

Some servers drop the part of a prompt that exceeds their context and judge the rest, without an error. Tokenizers
differ, so a count is compared with a rough estimate, and with the counts of the same endpoint for other prompts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

_UNIT = re.compile(r"[A-Za-z0-9]+|[^\sA-Za-z0-9]", re.A)
_SMALLEST_CONTEXT = 256
"""No server has a smaller context, so a smaller count that all prompts share is no cut prompt."""
_FAR_BELOW = 0.5
_CLEARLY_ABOVE = 1.25


@dataclass(frozen=True)
class PromptSize:
    """Size of a prompt.

    Attributes:
        estimate: Estimated number of tokens.
        words: Number of words in Latin letters; each is a token or more.
        counted: Number of tokens that the endpoint counted; 0 if it counted none.
    """

    estimate: float
    words: int
    counted: int


def text_size(text: str) -> tuple[float, int]:
    """Estimated number of tokens of a text, and its number of words in Latin letters."""
    estimate, words = 0.0, 0
    for unit in _UNIT.findall(text):
        if unit.isascii() and unit.isalnum():
            words += 1
            estimate += max(1.0, len(unit) / 5)
        else:
            estimate += 0.5
    return estimate, words


def cut_prompts(sizes: Sequence[PromptSize]) -> list[int]:
    """Positions of the prompts that the endpoint cut.

    Args:
        sizes: Sizes of prompts that one endpoint judged.

    Returns:
        Prompts of which the endpoint counted fewer than 0.7 tokens per word; or less than half of what its other counts
        let expect; or exactly the largest of all counts, like other prompts of another size, where a quarter more is
        expected. An endpoint that gives every prompt the same count does not count, and only the first rule applies.
    """
    counted = [i for i, size in enumerate(sizes) if size.counted > 0]
    cut = {i for i in counted if _SMALLEST_CONTEXT <= sizes[i].counted < 0.7 * sizes[i].words}
    counts = Counter(sizes[i].counted for i in counted)
    if len(counts) > 1 and len(counted) > 2:
        largest = max(counts)
        is_cap = len({round(sizes[i].estimate) for i in counted if sizes[i].counted == largest}) > 1
        others = [i for i in counted if not (is_cap and sizes[i].counted == largest)]
        ratio = median(sizes[i].counted / max(1.0, sizes[i].estimate) for i in others)
        for i in counted:
            expected = ratio * sizes[i].estimate
            at_cap = is_cap and sizes[i].counted == largest and expected > _CLEARLY_ABOVE * largest
            if sizes[i].counted < _FAR_BELOW * expected or at_cap:
                cut.add(i)
    return sorted(cut)
