"""Spaces that several tests share: the synthetic world at a size that trains in seconds."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from sacpo.spaces.loading import load_space, parse_space
from sacpo.spaces.space import Space

ROOT = Path(__file__).parent.parent


def quickstart() -> dict[str, Any]:
    """The quickstart as plain data, free to change."""
    return load_space(ROOT / "tune_spaces" / "quickstart.yaml").model_dump(mode="json")


def small(**changes: Any) -> dict[str, Any]:
    """The synthetic world with one chain of two stages, few rows and few updates."""
    data = quickstart()
    data["name"] = "small"
    data["model"] |= {"hidden_size": 16, "layers": 1, "heads": 2}
    data["data"]["demonstrations"]["rows"] = 512
    for source in data["data"]["preferences"].values():
        source["rows"] = 512
    data["training"] = {
        "sft": {"learning_rate": 5e-3, "epochs": 2, "batch_size": 64},
        "dpo": {"learning_rate": 1e-3, "epochs": 1, "batch_size": 64},
    }
    data["chains"] = [{"chain": "dpo:helpfulness>dpo:harmlessness", "beta": 2.0, "beta_over_lambda": [2.0]}]
    data["merges"] = [
        {
            "method": "p-sacpo",
            "chain": "dpo:helpfulness>dpo:harmlessness",
            "beta": 2.0,
            "beta_over_lambda": 2.0,
            "q": [0.0, 0.5, 1.0],
        }
    ]
    data["evaluation"]["generation"]["samples"] = 2
    data["resources"] = {"workers": 1, "cpus_per_worker": 1, "per_device_batch": 64}
    return deep_update(data, changes)


def deep_update(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `data` with `changes`; nested settings are named `a__b`."""
    data = copy.deepcopy(data)
    for name, value in changes.items():
        *path, last = name.split("__")
        here = data
        for key in path:
            here = here[key]
        here[last] = value
    return data


def paper_prompts(folder: Path) -> list[str]:
    """Write evaluation prompts for `tune_spaces/paper.yaml`, and return the overrides that name the files."""
    overrides = []
    for criterion in ("helpfulness", "harmlessness"):
        path = folder / f"{criterion}.json"
        path.write_text(json.dumps([{"prompt": f"A question about {criterion}?"}]))
        overrides.append(f"evaluation.{criterion}.prompts.path={path}")
    return overrides


def space(**changes: Any) -> Space:
    """`small(...)`, through the checks."""
    return parse_space(small(**changes))
