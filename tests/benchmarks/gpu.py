"""One accelerator: full-parameter DPO of a large policy with a precomputed reference, and the speed of its answers.

The policy is a Llama of the given shape with random weights; the pairs are random and up to 512 tokens long. Training
is in bfloat16 under ZeRO-3 with one process. The reference step and the stage are the sweep's own. Beside them runs
TRL's trainer with a live reference, in the same precision and sharding, at the largest of the batches that fits. Each
runs in a process of its own. `--shape tiny` runs on the CPU; its figures say nothing about an accelerator.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks._options import parse
from tests.benchmarks.precomputed_reference import apart, in_new_process

# hidden size, intermediate size, layers, heads, key-value heads, vocabulary
SHAPES = {
    "7b": (4096, 11008, 32, 32, 32, 32000),
    "135m": (576, 1536, 30, 9, 3, 49152),
    "tiny": (64, 128, 2, 4, 4, 2048),
}
BATCHES = (16, 8, 4, 2, 1)


def make(root: Path, shape: str, pairs: int, length: int) -> None:
    """Write a random policy and random pairs whose lengths are between 1/4 and 1/1 of `length`."""
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


def precompute(root: Path, batch: int, length: int) -> float:
    """Run the reference step in this process; returns its seconds."""
    from sacpo.planning.payloads import ReferencePayload
    from sacpo.steps import reference
    from tests.jobs import job

    parents = {name: root / name for name in ("policy", "data")}
    payload = ReferencePayload(shape="pairs", max_length=length)
    started = time.monotonic()
    reference.run(job(root / "reference", "reference", payload, parents, per_device_batch=batch))
    return time.monotonic() - started


def train(root: Path, mode: str, batch: int, per_device: int, length: int) -> dict[str, Any]:
    """Train one stage in this process, with a `precomputed` or a `live` reference.

    Returns:
        The throughput, or `out_of_memory`.
    """
    import torch

    from sacpo.cluster.worker import deepspeed_config
    from sacpo.execution.report import StepReport
    from sacpo.planning.payloads import DPOPayload
    from sacpo.planning.records import TrainMetrics
    from sacpo.spaces.training import DPOTraining
    from sacpo.steps.train import run
    from sacpo.steps.worker_context import WorkerContext
    from tests.jobs import job

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= group
    settings = DPOTraining(learning_rate=1e-6, batch_size=batch, lr_scheduler="constant", warmup_ratio=0.0,
                           gradient_checkpointing=True)  # fmt: skip
    payload = DPOPayload(method="dpo", objective="o", settings=settings, kl_parameter=0.1, seed=0, dtype="bfloat16",
                         max_length=length)  # fmt: skip
    parents = {name: root / name for name in ("policy", "data", "reference")}
    stage = job(root / mode, "train", payload, parents, cpus_per_worker=min(4, os.cpu_count() or 1),
                gpus_per_worker=int(torch.cuda.is_available()), per_device_batch=per_device,
                checkpoint_steps=10**6, reference=mode)  # fmt: skip
    try:
        with tempfile.TemporaryDirectory() as workdir:
            context = WorkerContext(
                world_size=1,
                rank=0,
                deepspeed=deepspeed_config(stage),
                resume_from=None,
                on_checkpoint=lambda folder, update: None,
                workdir=Path(workdir),
            )
            metrics = run(stage, context, StepReport()).metrics
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    assert isinstance(metrics, TrainMetrics)
    assert metrics.throughput is not None
    return metrics.throughput.model_dump(exclude_none=True)


def answer(root: Path, batch: int, prompts: int, new_tokens: int) -> float:
    """Tokens per second of greedy answers, batched as in a sweep."""
    import torch

    from sacpo.steps.policies import load_policy

    model, _ = load_policy({"policy": root / "policy"})
    vocabulary = model.config.vocab_size
    rng, made = np.random.default_rng(1), 0
    ids = torch.tensor(rng.integers(64, vocabulary, (prompts, 64)), device=model.device)
    started = time.monotonic()
    for start in range(0, prompts, batch):
        output = model.generate(
            input_ids=ids[start : start + batch], max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        )
        made += output[:, 64:].numel()
    return made / (time.monotonic() - started)


def train_largest(root: Path, mode: str, batch: int, length: int) -> tuple[int, dict[str, Any]] | None:
    """(per-device batch, throughput) of the largest per-device batch that fits; None if none fits."""
    for per_device in [n for n in BATCHES if n <= batch]:
        metrics: dict[str, Any] = in_new_process(train, root, mode, batch, per_device, length)
        if "out_of_memory" not in metrics:
            return per_device, metrics
        print(f"{mode}: {per_device} pairs per forward pass do not fit", flush=True)
    return None


def main() -> None:
    """Train in both modes, answer, and print the throughputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="pairs in a forward pass, and in an update")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--prompts", type=int, default=64, help="prompts that are answered")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens of each answer")
    options = parse(parser, shape="tiny", pairs=4, batch=2, length=32, prompts=2, new_tokens=4)
    figures: dict[str, Any] = {"shape": options.shape}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        apart(make, root, options.shape, options.pairs, options.length)
        figures["reference_seconds"] = round(apart(precompute, root, options.batch, options.length), 1)
        for mode in ("precomputed", "live"):
            result = train_largest(root, mode, options.batch, options.length)
            if result is None and mode == "precomputed":
                raise SystemExit("the stage with a precomputed reference does not fit: give a smaller --batch")
            if result is None:
                continue
            per_device, metrics = result
            names = ("tokens_per_second", "examples_per_second", "padding_fraction", "mfu", "peak_memory_bytes")
            figures |= {f"{mode}_{name}": metrics[name] for name in names if name in metrics}
            figures[f"{mode}_per_device_batch"] = per_device
        speed = apart(answer, root, min(32, options.prompts), options.prompts, options.new_tokens)
        figures["answer_tokens_per_second"] = speed
    if "live_tokens_per_second" in figures:
        figures["speed_ratio"] = figures["precomputed_tokens_per_second"] / figures["live_tokens_per_second"]
    for name, value in figures.items():
        print(f"{name:34} {value if isinstance(value, str) else round(value, 3)}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
