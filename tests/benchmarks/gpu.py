"""One accelerator: full-parameter DPO of a large policy with banked log-probabilities, and answering.

A Llama of the given shape with random weights, random pairs of up to 512 tokens, bfloat16, ZeRO-3 with one process. The
bank and the stage are the sweep's own steps; beside them TRL's trainer with a live reference, in the same precision and
sharding, at the largest of the batches that fits. Each runs in a process of its own. `--shape tiny` tries the command
out where there is no accelerator; its figures say nothing about one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# hidden size, intermediate size, layers, heads, key-value heads, vocabulary
SHAPES = {
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "135m": (576, 1536, 30, 9, 3, 49152),
    "tiny": (64, 128, 2, 4, 4, 2048),
}
BATCHES = (16, 8, 4, 2, 1)


def make(root: Path, shape: str, pairs: int, length: int) -> None:
    """A random policy, random pairs of 1/4 to 1/1 of the length, and prompts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sacpo.execution.artifacts import EXAMPLES
    from sacpo.steps.model import world_tokenizer

    hidden, intermediate, layers, heads, key_value, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_value, max_position_embeddings=2 * length,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(root / "policy")
    torch.set_default_dtype(torch.float32)
    world_tokenizer().save_pretrained(root / "policy")
    rng = np.random.default_rng(0)

    def draw(least: int, most: int) -> list[int]:
        return rng.integers(64, vocabulary, int(rng.integers(least, most + 1))).tolist()

    rows = [
        {
            "prompt_ids": draw(length // 8, length // 4),
            "chosen_ids": draw(length // 8, 3 * length // 4),
            "rejected_ids": draw(length // 8, 3 * length // 4),
        }
        for _ in range(pairs)
    ]
    (root / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "data" / EXAMPLES)


def work(root: Path, task: str, batch: int, per_device: int, length: int) -> dict[str, Any]:
    """The bank, a banked stage, or a stage with a live reference; metrics of the record, or `out_of_memory`."""
    import torch

    from sacpo.cluster.trainer import _deepspeed
    from sacpo.execution.job import Facts, Job
    from sacpo.steps import reference, train

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    settings = {"learning_rate": 1e-6, "epochs": 1, "batch_size": batch, "lr_scheduler": "constant", "warmup_ratio": 0.0,
                "weight_decay": 0.0, "max_grad_norm": 1.0, "adam_epsilon": 1e-8, "gradient_checkpointing": True,
                "loss": "sigmoid", "label_smoothing": 0.0}  # fmt: skip
    payload = {"method": "dpo", "objective": "o", "settings": settings, "kl_parameter": 0.1, "seed": 0,
               "dtype": "bfloat16", "max_length": length, "shape": "pairs"}  # fmt: skip
    resources = {"cpus_per_worker": 4, "gpus_per_worker": int(torch.cuda.is_available()), "workers": 1,
                 "per_device_batch": per_device, "checkpoint_steps": 10**6, "sharding": "zero3",
                 "reference": "live" if task == "live" else "bank"}  # fmt: skip
    out = root / task
    out.mkdir(exist_ok=True)
    parents = {name: root / name for name in ("policy", "data", "reference")}
    job = Job("step", payload, out, parents, {}, resources, out, out, run="run", ledger=out)
    started = time.monotonic()
    try:
        if task == "reference":
            reference.run(replace(job, folder=out))
            return {"seconds": time.monotonic() - started}
        with tempfile.TemporaryDirectory() as workdir:
            placement = train.WorkerContext(1, 0, _deepspeed(job), None, lambda folder, update: None, Path(workdir))
            metrics: dict[str, Any] = train.run(job, placement, Facts()).metrics
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    return metrics


def answer(root: Path, batch: int, prompts: int, new_tokens: int) -> float:
    """Tokens a second of greedy answers, batched as in a sweep."""
    import torch

    from sacpo.steps.model import load_policy

    model, _ = load_policy({"policy": root / "policy"})
    vocabulary = model.config.vocab_size
    rng, made = np.random.default_rng(1), 0
    ids = torch.tensor(rng.integers(64, vocabulary, (prompts, 64)), device=model.device)
    started = time.monotonic()
    for start in range(0, prompts, batch):
        found = model.generate(
            input_ids=ids[start : start + batch], max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        )
        made += found[:, 64:].numel()
    return made / (time.monotonic() - started)


def apart(function: Any, *arguments: Any) -> Any:
    """A call in a process of its own, so that memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="pairs in a forward pass, and in an update")
    parser.add_argument("--length", type=int, default=512)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"shape": arguments.shape}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        apart(make, root, arguments.shape, arguments.pairs, arguments.length)
        bank = apart(work, root, "reference", arguments.batch, arguments.batch, arguments.length)
        figures["bank_seconds"] = round(bank["seconds"], 1)
        for task in ("bank", "live"):
            for per_device in [n for n in BATCHES if n <= arguments.batch]:
                found = apart(work, root, task, arguments.batch, per_device, arguments.length)
                if "out_of_memory" not in found:
                    break
                print(f"{task}: {per_device} pairs a forward pass do not fit", flush=True)
                if task == "bank":
                    raise SystemExit("the banked stage does not fit: give a smaller --batch")
            else:
                continue
            names = ("tokens_per_second", "examples_per_second", "padding_share", "mfu", "peak_memory_bytes")
            figures |= {f"{task}_{name}": found[name] for name in names if name in found}
            figures[f"{task}_per_device_batch"] = per_device
        figures["answer_tokens_per_second"] = apart(answer, root, 32, 64, 128)
    if "live_tokens_per_second" in figures:
        figures["speed_ratio"] = figures["bank_tokens_per_second"] / figures["live_tokens_per_second"]
    for name, value in figures.items():
        print(f"{name:28} {value if isinstance(value, str) else round(value, 3)}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
