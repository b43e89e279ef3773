"""Detection of prompts that an endpoint cut, by the tokens that it counted."""

from __future__ import annotations

import pytest

from sacpo.judges.truncation import PromptSize, cut_prompts


def sized(*counts: tuple[int, int]) -> list[PromptSize]:
    """Sizes of prompts of (words, counted tokens)."""
    return [PromptSize(1.2 * words, words, counted) for words, counted in counts]


@pytest.mark.parametrize(
    ("counts", "cut"),
    [
        ([(400, 520), (500, 650), (450, 40), (420, 540)], [2]),
        ([(400, 520), (500, 650), (2000, 2048), (2600, 2048), (3000, 2048)], [2, 3, 4]),
        ([(400, 100), (500, 100), (450, 100)], []),
        ([(400, 0), (500, 0)], []),
        ([(1500, 512), (1400, 512)], [0, 1]),
        ([(400, 520), (800, 1040), (1600, 2080)], []),
        ([(5, 37), (6, 37), (2, 33)], []),  # a chat template adds thirty tokens to each prompt
        ([(4, 36), (5, 37), (6, 38), (8, 40), (12, 45), (200, 270), (150, 60)], [6]),
    ],
)
def test_a_count_far_below_the_other_counts_means_a_cut_prompt(counts: list[tuple[int, int]], cut: list[int]) -> None:
    assert cut_prompts(sized(*counts)) == cut
