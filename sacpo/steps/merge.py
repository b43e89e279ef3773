"""The `merge` step: (1-q) x first + q x second, weight by weight."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sacpo.errors import StepError
from sacpo.steps.job import Facts, Job


def run(job: Job) -> Facts:
    """Write the merged policy: one shard at a time, averaged in float32 and rounded once to the parents' dtype.

    q = 0 and q = 1 give the first and the second parent bit for bit. Equal to mergekit's `linear` with weights 1-q and
    q.

    Raises:
        StepError: the parents do not hold the same tensors.
    """
    first, second, q = job.parents["first"], job.parents["second"], job.payload["q"]
    where: dict[str, Path] = {}
    for path in sorted(second.glob("*.safetensors")):
        with safe_open(path, "pt") as theirs:
            where |= dict.fromkeys(theirs.keys(), path)
    count = 0
    for path in sorted(first.glob("*.safetensors")):
        merged = {}
        with safe_open(path, "pt") as ours:
            for name in ours.keys():  # noqa: SIM118 - a safe_open handle is not iterable
                a = ours.get_tensor(name)
                if name not in where:
                    raise StepError(f"cannot merge: {name} is in one parent only")
                with safe_open(where[name], "pt") as theirs:
                    b = theirs.get_tensor(name)
                if a.shape != b.shape or a.dtype != b.dtype:
                    raise StepError(f"cannot merge: {name} is {a.shape} {a.dtype} in one parent, {b.shape} {b.dtype}")
                merged[name] = interpolate(a, b, q)
                count += 1
        save_file(merged, job.folder / path.name, metadata={"format": "pt"})
    if count != len(where):
        raise StepError(f"cannot merge: the parents hold {count} and {len(where)} tensors")
    for path in first.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, job.folder / path.name)
    return Facts(effective={"q": q}, metrics={"tensors": count})


def interpolate(a: torch.Tensor, b: torch.Tensor, q: float) -> torch.Tensor:
    """(1-q) a + q b in float32, rounded once; exact at q = 0 and q = 1."""
    if q in (0.0, 1.0):
        return a if q == 0.0 else b
    return ((1.0 - q) * a.float() + q * b.float()).to(a.dtype)
