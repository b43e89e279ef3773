"""(1-q) x first + q x second, weight by weight, in memory: no merged checkpoint is written unless it is exported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, GenerationConfig

from sacpo.errors import StepError
from sacpo.spaces.model_loading import Loading
from sacpo.steps.adapters import Adapter
from sacpo.steps.model_loading import load_options


def merged(first: Path, second: Path, q: float, loading: Loading | None = None) -> Any:
    """The merged policy as a model, averaged in float32 and rounded once to the parents' dtype.

    The parents' files are mapped, not read into models, so another q of the same parents finds them in memory. q = 0
    and q = 1 give the first and the second parent bit for bit. Equal to mergekit's `linear` with weights 1-q and q.

    Raises:
        StepError: the parents do not hold the same tensors.
    """
    ours, theirs = _tensors(first), _tensors(second)
    if ours.keys() != theirs.keys():
        raise StepError(
            f"cannot merge: the parents hold {len(ours)} and {len(theirs)} tensors, or name them differently"
        )
    weights = {}
    for name, a in ours.items():
        b = theirs[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            raise StepError(f"cannot merge: {name} is {a.shape} {a.dtype} in one parent, {b.shape} {b.dtype}")
        weights[name] = interpolate(a, b, q)
    config = AutoConfig.from_pretrained(first)
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    options = load_options(loading or Loading(), config.dtype)
    model = architecture.from_pretrained(None, config=config, state_dict=weights, dtype=config.dtype, **options)
    model.generation_config = GenerationConfig.from_pretrained(first)  # it names the tokens that end an answer
    return model


@dataclass(frozen=True)
class Part:
    """A policy and its weight in an average.

    Attributes:
        base: Folder with all weights.
        adapter: What is added to them; without factors where the base is the policy.
        weight: Weights of all parts add up to 1.
    """

    base: Path
    adapter: Adapter
    weight: float


def average(parts: list[Part], loading: Loading | None = None) -> Any:
    """The average of the weights of policies that are adapters on bases, which may differ.

    Everything is added in float32 and rounded once to the number format of the first base.

    Args:
        parts: The policies and their weights.
        loading: How the result is loaded; None: as transformers does by default.
    """
    dtype = AutoConfig.from_pretrained(parts[0].base).dtype
    options = load_options(loading or Loading(), dtype)
    result: Any = None
    for part in parts:
        model = part.adapter.merged_into(
            AutoModelForCausalLM.from_pretrained(part.base, dtype=torch.float32, **options)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(part.weight)
            if result is not None:
                for total, parameter in zip(result.parameters(), model.parameters(), strict=True):
                    total.add_(parameter)
        result = model if result is None else result
    return result.to(dtype)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def interpolate(a: torch.Tensor, b: torch.Tensor, q: float) -> torch.Tensor:
    """(1-q) a + q b in float32, rounded once; exact at q = 0 and q = 1."""
    if q in (0.0, 1.0):
        return a if q == 0.0 else b
    return a.to(torch.float32, copy=True).mul_(1.0 - q).add_(b.float() * q).to(a.dtype)
