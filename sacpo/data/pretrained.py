"""The check of a pretrained checkpoint that policies and reward models share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sacpo.errors import StepError


def check_weights(info: Mapping[str, Any], path: str) -> None:
    """Refuse a checkpoint that lacks weights: transformers would initialise them at random and only log it.

    Args:
        info: The loading info of `from_pretrained(..., output_loading_info=True)`; tied weights are not missing there.
        path: Where the checkpoint is, for the error.

    Raises:
        StepError: weights are missing, or have another shape than the configuration says.
    """
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(item[0] if isinstance(item, tuple) else item) for item in info["mismatched_keys"])
    for problem, names in (
        ("are not in the checkpoint", missing),
        ("have another shape in the checkpoint", mismatched),
    ):
        if names:
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise StepError(
                f"{path}: {shown} {problem}, so they would be random; give a complete checkpoint of this architecture"
            )
