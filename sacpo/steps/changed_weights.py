"""How many weights a training changed in the number format in which policies are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import safe_open

_TENSORS = 32  # are compared, evenly spaced over the model
_FEW = 0.25  # changed weights; fewer are worth a warning


def changed_weights(before: Path, after: Path) -> float | None:
    """The share of weights that differ between two stored models: mean over up to 32 of the tensors that both have.

    Args:
        before: Folder of the model that the training started from, with its weights as safetensors.
        after: Folder of the trained one.

    Returns:
        From 0 to 1; None if they share no tensor.
    """
    first, second = _places(before), _places(after)
    common = sorted(first.keys() & second.keys())
    shares = []
    for name in common[:: max(1, len(common) // _TENSORS)]:
        with safe_open(first[name], "pt") as one, safe_open(second[name], "pt") as other:
            shares.append(float((one.get_tensor(name) != other.get_tensor(name)).float().mean()))
    return float(np.mean(shares)) if shares else None


def rounding_warning(changed: float | None, dtype: str) -> tuple[str, ...]:
    """What to say of a training whose changes were mostly smaller than the rounding of its number format."""
    if dtype != "bfloat16" or changed is None or changed >= _FEW:
        return ()
    return (
        f"only {changed:.0%} of the weights changed: bfloat16 rounds changes below about 1/256 of a weight away, in "
        "the policy and while it is trained; try a higher learning_rate, more updates, lora, or `model.dtype: float32`",
    )


def _places(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    places: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            places |= dict.fromkeys(file.keys(), path)
    return places
