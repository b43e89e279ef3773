"""Nine merge ratios of a checkpoint averaged in memory, against nine runs of `mergekit-yaml` and nine disk copies."""

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
from sacpo.steps.model import world_tokenizer
from tests import plain_trl
from tests.benchmarks._options import is_smoke, parse
from tests.spaces import ROOT

MERGEKIT = Path(sys.executable).parent / "mergekit-yaml"


def make(folder: Path, seed: int, layers: int, width: int) -> int:
    """Write a random bfloat16 Llama; returns its size in bytes."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=8192, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=layers,
                         num_attention_heads=12, num_key_value_heads=12)  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    world_tokenizer().save_pretrained(folder)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def mergekit(first: Path, second: Path, q: float, out: Path) -> None:
    """Merge as the paper's code does for each ratio: a process that writes a checkpoint."""
    job = {"merge_method": "linear", "dtype": "bfloat16", "models": [
        {"model": str(first), "parameters": {"weight": 1 - q}},
        {"model": str(second), "parameters": {"weight": q}},
    ]}  # fmt: skip
    (out.parent / "job.yaml").write_text(json.dumps(job))
    subprocess.run([MERGEKIT, str(out.parent / "job.yaml"), str(out)], check=True, capture_output=True)


def plain(first: Path, second: Path, q: float, out: Path) -> None:
    """The same by a short script, for machines without mergekit."""
    values = {"first": str(first), "second": str(second), "q": q, "out": str(out)}
    if is_smoke():
        plain_trl.run("merge", values)
        return
    command = [sys.executable, "-m", "tests.plain_trl", "merge", json.dumps(values)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def main() -> None:
    """Time the merges on both sides and print their ratio and their largest difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=18, help="18 layers of the default width make 1 GB")
    parser.add_argument("--width", type=int, default=1536, help="hidden size, a multiple of 24")
    parser.add_argument("--ratios", type=int, default=9, help="number of merge ratios")
    parser.add_argument("--against", choices=["mergekit", "plain"], default="mergekit", help="plain: a short script")
    options = parse(parser, layers=1, width=48, ratios=1, against="mergekit" if MERGEKIT.exists() else "plain")
    if options.against == "mergekit" and not MERGEKIT.exists():
        raise SystemExit(
            "this comparison needs mergekit beside sacpo: pip install --no-deps mergekit==0.1.5 immutables peft; "
            "or give --against plain"
        )
    other = {"mergekit": mergekit, "plain": plain}[options.against]
    ratios = [(i + 1) / (options.ratios + 1) for i in range(options.ratios)]
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        first, second = root / "first", root / "second"
        size = max(make(folder, seed, options.layers, options.width) for seed, folder in enumerate((first, second)))
        started = time.monotonic()
        shutil.copytree(first, root / "copy")
        copy = time.monotonic() - started
        started = time.monotonic()
        for q in ratios:
            merge = merged(first, second, q)
        memory = time.monotonic() - started
        started = time.monotonic()
        for q in ratios:
            shutil.rmtree(root / "other", ignore_errors=True)
            other(first, second, q, root / "other")
        processes = time.monotonic() - started
        weights = LlamaForCausalLM.from_pretrained(root / "other", dtype="auto").state_dict()
        distance = max(float(((a.float() - weights[name].float()) / a.float().abs().clamp(min=1e-6)).abs().max())
                       for name, a in merge.state_dict().items())  # fmt: skip
    print(f"checkpoint of {size / 1e9:.2f} GB; {len(ratios)} merges: in memory {memory:.1f} s, {options.against} "
          f"{processes:.1f} s; as many copies {len(ratios) * copy:.1f} s")  # fmt: skip
    figures = {
        "speed_ratio": round(processes / memory, 2),
        "against_copying": round(len(ratios) * copy / memory, 2),
        "largest_relative_difference": float(f"{distance:.2g}"),
        "gigabytes": round(size / 1e9, 2),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
