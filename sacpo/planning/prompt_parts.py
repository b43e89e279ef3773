"""Parts of a criterion's prompts: the halves that choose and certify, and the order in which a race asks them.

Both follow from the hashes of the prompts' ids, so neither depends on the order of a file or on any answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

Part = Literal["all", "choosing", "certifying"]


def certifies(prompt_id: str) -> bool:
    """Whether a prompt belongs to the certifying part: half of all prompts, by the hash of the id."""
    return hashlib.sha256(str(prompt_id).encode()).digest()[0] % 2 == 1


def prompts_of_part(categories: Mapping[str, str], part: Part) -> list[str]:
    """The prompts of a part, in an order whose every beginning has about the part's mixture of categories.

    Args:
        categories: The id of each prompt of the criterion and its category.
        part: The part.
    """
    members = [prompt for prompt in categories if part == "all" or certifies(prompt) == (part == "certifying")]
    by_category: dict[str, list[str]] = {}
    for prompt in sorted(members, key=_order):
        by_category.setdefault(categories[prompt] or "", []).append(prompt)
    position = {
        prompt: (number + 0.5) / len(group) for group in by_category.values() for number, prompt in enumerate(group)
    }
    return sorted(members, key=lambda prompt: (position[prompt], _order(prompt)))


def _order(prompt_id: str) -> bytes:
    return hashlib.sha256(f"order {prompt_id}".encode()).digest()
