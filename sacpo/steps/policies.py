"""Loads policies from the store, for steps that answer or score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from sacpo.data.batching import with_pad_token
from sacpo.data.model_cache import MODEL_CACHE
from sacpo.planning.plan import MERGED_ROLES, MIXED_ROLES
from sacpo.spaces.merging import FIRST, LINEAR, ORIGIN, SECOND, Combination
from sacpo.spaces.model_loading import Loading
from sacpo.steps.adapters import Adapter, attach, stacked
from sacpo.steps.effective import refuse_differences
from sacpo.steps.logit_mix import LogitMix
from sacpo.steps.merge import Part, average, combined, merged
from sacpo.steps.model_loading import effective_loading, load_options


@dataclass
class _SharedBase:
    """A base that one adapter after the other is attached to, with the adapter that it carries now."""

    model: Any
    handles: list[RemovableHandle]


def load_policy(
    parents: dict[str, Path],
    q: float | None = None,
    combination: Combination = LINEAR,
    loading: Loading | None = None,
    *,
    share_base: bool = False,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A policy in evaluation mode on this process's device, and its tokenizer, which pads on the left.

    Args:
        parents: The folder of `policy`; or those of `first` and `second`, whose weights are merged, with `origin` where
            task vectors are merged; or those of `mixed_first` and `mixed_second`, whose logits are mixed; for each that
            is an adapter, the folder of its base as `ROLE_base`.
        q: The second's weight; None: one policy.
        combination: How weights are merged.
        loading: How the base is loaded; None: as transformers does by default.
        share_base: Keep the base of an adapter in this process for the next policy on the same base. The next such call
            takes it over, so only one of these policies can be used at a time. Any other policy is kept too, as far as
            `sacpo.data.model_cache` has room.
    """
    loading = loading or Loading()
    if MIXED_ROLES[0] in parents:
        assert q is not None, "a mixture has a weight"
        (first, tokenizer), (second, _) = (load_policy(single(parents, role), loading=loading) for role in MIXED_ROLES)
        return LogitMix(first, second, q), tokenizer
    parts = _parts(parents, q)
    tokenizer = AutoTokenizer.from_pretrained(parents["policy" if q is None else "first"], padding_side="left")
    base, *others = dict.fromkeys(part.base for part in parts)
    is_linear = combination == LINEAR or q is None
    if share_base and is_linear and not others and any(part.adapter.factors for part in parts):
        shared = MODEL_CACHE.get([base], ("base", loading), lambda: _SharedBase(_load(base, loading), []), pinned=True)
        for handle in shared.handles:
            handle.remove()
        shared.handles = attach(shared.model, _stacked(parts))
        return shared.model, with_pad_token(tokenizer)

    def load() -> Any:
        if not is_linear:
            return _placed(_merged(parts, parents, combination, loading), loading)
        if others:
            return _placed(_averaged(parts, loading), loading)
        model = _load(base, loading)
        attach(model, _stacked(parts))
        return model

    names = [name for role in ("policy", *MERGED_ROLES, ORIGIN) for name in (role, f"{role}_base")]
    folders = [parents[name] for name in names if name in parents]
    return MODEL_CACHE.get(folders, ("policy", q, combination, loading), load), with_pad_token(tokenizer)


def single(parents: dict[str, Path], role: str) -> dict[str, Path]:
    """One of several parents as the policy of `load_policy`, with its base."""
    names = {role: "policy", f"{role}_base": "policy_base"}
    return {names[role]: folder for role, folder in parents.items() if role in names}


def adapter_of(parents: dict[str, Path], q: float | None = None) -> Adapter:
    """The adapter that makes a policy of its base; arguments as for `load_policy`, where there is one base only."""
    return _stacked(_parts(parents, q))


def full_policy(parents: dict[str, Path], q: float | None = None, combination: Combination = LINEAR) -> Any:
    """A policy with all weights: adapters are added in float32 and rounded once; arguments as for `load_policy`."""
    parts = _parts(parents, q)
    if combination != LINEAR and q is not None:
        return _merged(parts, parents, combination, Loading())
    return _averaged(parts, Loading())


def stop_ids(model: Any) -> list[int]:
    """Ids of the tokens that end an answer of a policy, as its base model declared them."""
    ids = model.generation_config.eos_token_id
    return list(ids) if isinstance(ids, list) else [ids]


def _parts(parents: dict[str, Path], q: float | None) -> list[Part]:
    weights = {"policy": 1.0} if q is None else {"first": 1.0 - q, "second": q}
    return [_part(parents, role, weight) for role, weight in weights.items()]


def _part(parents: dict[str, Path], role: str, weight: float) -> Part:
    return Part(parents.get(f"{role}_base", parents[role]), Adapter.read(parents[role]), weight)


def _merged(parts: list[Part], parents: dict[str, Path], combination: Combination, loading: Loading) -> Any:
    first, second = parts
    policies = {FIRST: first, SECOND: second}
    if combination.uses_origin:
        policies[ORIGIN] = _part(parents, ORIGIN, 0.0)
    return combined(policies, second.weight, combination, loading)


def _stacked(parts: list[Part]) -> Adapter:
    return stacked(*((part.adapter, part.weight) for part in parts))


def _averaged(parts: list[Part], loading: Loading) -> Any:
    if len(parts) == 2 and not any(part.adapter.factors for part in parts):
        return merged(parts[0].base, parts[1].base, parts[1].weight, loading)
    return average(parts, loading)


def _load(folder: Path, loading: Loading) -> Any:
    dtype = AutoConfig.from_pretrained(folder).dtype
    return _placed(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **load_options(loading, dtype)), loading)


def _placed(model: Any, loading: Loading) -> Any:
    """The model in evaluation mode on this process's device, loaded as requested."""
    refuse_differences(loading.model_dump(), effective_loading(model, loading))
    if loading.quantization is None:  # bitsandbytes has placed a 4-bit model already
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval()
