"""Detects prompts that an endpoint cut: it counted far fewer tokens than the prompt must have.

Some servers drop the part of a prompt that exceeds their context and judge the rest, without an error. Tokenizers
differ and chat templates add tokens, so a count is compared with a rough estimate, and with a line through the counts
of the same endpoint for other prompts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from scipy.stats import theilslopes

_UNIT = re.compile(r"[A-Za-z0-9]+|[^\sA-Za-z0-9]", re.A)
_SMALLEST_CONTEXT = 256
"""No server has a smaller context, so a smaller count that all prompts share is no cut prompt."""
_MOST_FITTED = 500
"""The line goes through no more prompts than these; the fit looks at all pairs of them."""
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
        expected. What is expected lies on the Theil-Sen line of the other counts over the estimates. An endpoint that
        gives every prompt the same count does not count, and only the first rule applies.
    """
    counted = [i for i, size in enumerate(sizes) if size.counted > 0]
    cut = {i for i in counted if _SMALLEST_CONTEXT <= sizes[i].counted < 0.7 * sizes[i].words}
    counts = Counter(sizes[i].counted for i in counted)
    if len(counts) > 1:
        largest = max(counts)
        is_cap = len({round(sizes[i].estimate) for i in counted if sizes[i].counted == largest}) > 1
        others = [sizes[i] for i in counted if not (is_cap and sizes[i].counted == largest)]
        slope, intercept = _line(others)
        for i in counted:
            expected = intercept + slope * sizes[i].estimate
            at_cap = is_cap and sizes[i].counted == largest and expected > _CLEARLY_ABOVE * largest
            if sizes[i].counted < _FAR_BELOW * expected or at_cap:
                cut.add(i)
    return sorted(cut)


def _line(sizes: Sequence[PromptSize]) -> tuple[float, float]:
    """Slope and intercept of the line of the counts over the estimates; it is level if there is one estimate only."""
    fitted = sizes[:: -(-len(sizes) // _MOST_FITTED)]
    counts, estimates = [size.counted for size in fitted], [size.estimate for size in fitted]
    if len(set(estimates)) == 1:
        return 0.0, median(counts)
    slope, intercept, *_ = theilslopes(counts, estimates)
    return float(slope), float(intercept)
