"""Merges of two policies' weights in memory: no merged checkpoint is written unless it is exported.

Linear merges, (1-q) x first + q x second, are computed here. The other combinations are computed by mergekit's own
functions, from the configuration that an export has as `mergekit.yaml` (`sacpo.spaces.merging`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, GenerationConfig

from sacpo.errors import StepError
from sacpo.spaces.merging import FIRST, SECOND, Combination
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
    _check_alike(ours, theirs)
    return _model(first, {name: interpolate(a, theirs[name], q) for name, a in ours.items()}, loading)


def _check_alike(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    """Refuse policies of different architectures or vocabularies."""
    way_out = "merge policies that were trained from one model, with one vocabulary and one number format"
    if ours.keys() != theirs.keys():
        raise StepError(
            f"cannot merge: the parents hold {len(ours)} and {len(theirs)} tensors, or name them differently; {way_out}"
        )
    for name, a in ours.items():
        b = theirs[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            raise StepError(
                f"cannot merge: {name} is {a.shape} {a.dtype} in one parent, {b.shape} {b.dtype}; {way_out}"
            )


def _model(folder: Path, weights: dict[str, torch.Tensor], loading: Loading | None) -> Any:
    """A model of the folder's architecture with these weights."""
    config = AutoConfig.from_pretrained(folder)
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    options = load_options(loading or Loading(), config.dtype)
    model = architecture.from_pretrained(None, config=config, state_dict=weights, dtype=config.dtype, **options)
    model.generation_config = GenerationConfig.from_pretrained(folder)  # it names the tokens that end an answer
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


def combined(policies: Mapping[str, Part], q: float, combination: Combination, loading: Loading | None = None) -> Any:
    """A merge that is not linear, computed in float32 by mergekit and rounded once to the parents' number format.

    All weights are merged: an adapter is added to its base first, in float32. Random numbers are drawn for each tensor
    anew, by the combination's seed and the tensor's name. Where the combination keeps its ends, q = 0 and q = 1 give
    the parents themselves.

    Args:
        policies: The policies by role: `first`, `second` and, for task vectors, `origin`. Their weights are not used.
        q: Weight of the second policy.
        combination: How they are merged.
        loading: How the result is loaded; None: as transformers does by default.

    Raises:
        StepError: the policies do not hold the same tensors.
    """
    adapted = any(part.adapter.factors for part in policies.values())
    tensors = {role: _all_weights(part) if adapted else _tensors(part.base) for role, part in policies.items()}
    first = tensors[FIRST]
    for others in tensors.values():
        _check_alike(first, others)
    folder = policies[FIRST].base
    dtype = AutoConfig.from_pretrained(folder).dtype if adapted else None
    if combination.keeps_ends and q in (0.0, 1.0):
        weights = tensors[FIRST if q == 0.0 else SECOND]
    else:
        weights = {
            name: _combined({role: tensors[role][name] for role in tensors}, name, q, combination) for name in first
        }
    return _model(folder, {name: tensor.to(dtype or tensor.dtype) for name, tensor in weights.items()}, loading)


def _combined(tensors: Mapping[str, torch.Tensor], name: str, q: float, combination: Combination) -> torch.Tensor:
    """One tensor of the merge, in the number format of the first policy's."""
    from mergekit.merge_methods import registry
    from mergekit.merge_methods.base import TensorGroup

    recipe = combination.recipe(q)
    parameters: dict[str, Any] = dict(recipe["parameters"])
    for model in recipe["models"]:
        for key, value in model.get("parameters", {}).items():
            parameters.setdefault(key, {})[model["model"]] = value
    # Kept entries are drawn on the CPU, so that they are the same on every machine; sorting is faster on a GPU.
    device = "cuda" if torch.cuda.is_available() and not combination.draws else "cpu"
    roles = list(tensors)
    group = TensorGroup.from_tensors(
        [tensor.to(device, torch.float32) for tensor in tensors.values()],
        ids=roles,
        base_index=roles.index(recipe["base_model"]),
        name=name,
    )
    with torch.random.fork_rng(devices=[]):
        digest = hashlib.sha256(f"{getattr(combination, 'seed', 0)} {name}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        (result,) = registry.get(recipe["merge_method"])([group], parameters=parameters)
    merged: torch.Tensor = result.to(tensors[FIRST])
    return merged


def _all_weights(part: Part) -> dict[str, torch.Tensor]:
    """The weights of a policy in float32, with its adapter added."""
    model = part.adapter.merged_into(AutoModelForCausalLM.from_pretrained(part.base, dtype=torch.float32))
    weights: dict[str, torch.Tensor] = model.state_dict()
    return weights


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def interpolate(a: torch.Tensor, b: torch.Tensor, q: float) -> torch.Tensor:
    """(1-q) a + q b in float32, rounded once; exact at q = 0 and q = 1."""
    if q in (0.0, 1.0):
        return a if q == 0.0 else b
    return a.to(torch.float32, copy=True).mul_(1.0 - q).add_(b.float() * q).to(a.dtype)
