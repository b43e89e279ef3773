"""Nine q of a checkpoint averaged in memory, against nine runs of `mergekit-yaml` and the disk's copy speed."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from sacpo.steps.merge import merged

RATIOS = [i / 10 for i in range(1, 10)]


def make(folder: Path, seed: int, layers: int) -> int:
    """A random bfloat16 Llama; returns its bytes."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=8192, hidden_size=1536, intermediate_size=4096, num_hidden_layers=layers,
                         num_attention_heads=12, num_key_value_heads=12)  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def mergekit(first: Path, second: Path, q: float, out: Path) -> None:
    """What the reference pipeline does for each q: a process that writes a checkpoint."""
    job = {"merge_method": "linear", "dtype": "bfloat16", "models": [
        {"model": str(first), "parameters": {"weight": 1 - q}},
        {"model": str(second), "parameters": {"weight": q}},
    ]}  # fmt: skip
    (out.parent / "job.yaml").write_text(json.dumps(job))
    command = [str(Path(sys.executable).parent / "mergekit-yaml"), str(out.parent / "job.yaml"), str(out)]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=18, help="18 make 1 GB")
    layers = parser.parse_args().layers
    if not (Path(sys.executable).parent / "mergekit-yaml").exists():
        raise SystemExit(
            "this comparison needs mergekit beside sacpo: pip install --no-deps mergekit==0.1.5 immutables peft"
        )
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        first, second = root / "first", root / "second"
        size = max(make(folder, seed, layers) for seed, folder in enumerate((first, second)))
        started = time.monotonic()
        shutil.copytree(first, root / "copy")
        copy = time.monotonic() - started
        started = time.monotonic()
        for q in RATIOS:
            ours = merged(first, second, q)
        memory = time.monotonic() - started
        started = time.monotonic()
        for q in RATIOS:
            shutil.rmtree(root / "theirs", ignore_errors=True)
            mergekit(first, second, q, root / "theirs")
        processes = time.monotonic() - started
        theirs = LlamaForCausalLM.from_pretrained(root / "theirs", dtype="auto").state_dict()
        steps = max(float(((a.float() - theirs[name].float()) / a.float().abs().clamp(min=1e-6)).abs().max())
                    for name, a in ours.state_dict().items())  # fmt: skip
    print(f"checkpoint of {size / 1e9:.2f} GB; nine q: in memory {memory:.1f} s, mergekit-yaml {processes:.1f} s; "
          f"copying it nine times {9 * copy:.1f} s")  # fmt: skip
    figures = {
        "speed_ratio": round(processes / memory, 2),
        "against_copying": round(9 * copy / memory, 2),
        "largest_relative_difference": float(f"{steps:.2g}"),
        "gigabytes": round(size / 1e9, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
