"""DPO stages with the reference's log-probabilities from the bank, against TRL's trainer with a live reference.

One policy, one preference set, four KL parameters, three epochs each; the bank's own cost counts on its side. Memory is
measured on a larger model, where the reference's copy is not lost in the noise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KL_PARAMETERS = (0.05, 0.1, 0.2, 0.4)
EPOCHS, BATCH, LENGTH = 3, 16, 96


def make_policy(folder: Path, width: int, layers: int) -> int:
    """A random Llama with a tokenizer; returns the bytes of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sacpo.steps.model import world_tokenizer

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=2048, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
                         num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=256)  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    world_tokenizer().save_pretrained(folder)
    return sum(p.numel() * p.element_size() for p in model.parameters())


def make_pairs(folder: Path, rows: int) -> None:
    """Random pairs of many lengths."""
    from sacpo.execution.artifacts import EXAMPLES

    rng = np.random.default_rng(0)

    def draw() -> list[int]:
        return rng.integers(64, 2048, int(rng.integers(LENGTH // 4, LENGTH // 2))).tolist()

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([{name: draw() for name in names} for _ in range(rows)]), folder / EXAMPLES)


def work(root: Path, task: str, kl_parameter: float, epochs: int) -> dict[str, Any]:
    """The bank, or one stage, in this process; its seconds, losses and memory."""
    import resource

    from sacpo.execution.job import Facts, Job
    from sacpo.steps import reference, train

    settings = {"learning_rate": 1e-4, "epochs": epochs, "batch_size": BATCH, "lr_scheduler": "constant",
                "warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0, "adam_epsilon": 1e-8,
                "gradient_checkpointing": False, "loss": "sigmoid", "label_smoothing": 0.0}  # fmt: skip
    payload = {"method": "dpo", "objective": "o", "settings": settings, "kl_parameter": kl_parameter, "seed": 0,
               "dtype": "float32", "max_length": 2 * LENGTH, "shape": "pairs"}  # fmt: skip
    resources = {"cpus_per_worker": 1, "per_device_batch": BATCH, "checkpoint_steps": 10**6, "sharding": "ddp",
                 "reference": task}  # fmt: skip
    out = root / f"{task}-{kl_parameter}"
    out.mkdir(exist_ok=True)
    parents = {name: root / name for name in ("policy", "data", "reference")}
    job = Job("step", payload, out, parents, {}, resources, out, out, run="run", ledger=out)
    started = time.monotonic()
    if task == "reference":
        import os

        reference.run(job)
        os.replace(out, root / "reference")
        return {"seconds": time.monotonic() - started}
    with tempfile.TemporaryDirectory() as workdir:
        placement = train.WorkerContext(1, 0, None, None, lambda folder, update: None, Path(workdir))
        facts = train.run(job, placement, Facts())
    history = json.loads((out / "history.json").read_text())
    return {
        "seconds": time.monotonic() - started,
        "training_seconds": facts.metrics["training_seconds"],
        "losses": [entry["loss"] for entry in history],
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def apart(*arguments: Any) -> dict[str, Any]:
    """`work` in a process of its own, so that memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=96)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_policy(root / "policy", 192, 6)
        make_pairs(root / "data", pairs)
        seconds = {"bank": apart(root, "reference", 0.0, 1)["seconds"], "live": 0.0}
        distance = 0.0
        print("KL parameter   banked s   live s")
        for value in KL_PARAMETERS:
            banked, live = (apart(root, task, value, EPOCHS) for task in ("bank", "live"))
            seconds["bank"] += banked["seconds"]
            seconds["live"] += live["seconds"]
            gaps = np.abs(np.array(banked["losses"]) / np.array(live["losses"]) - 1)
            distance = max(distance, float(gaps.max()))
            print(f"{value:12g} {banked['seconds']:10.1f} {live['seconds']:8.1f}")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        size = make_policy(root / "policy", 1024, 8)
        make_pairs(root / "data", BATCH)
        apart(root, "reference", 0.0, 1)
        peaks = {task: apart(root, task, 0.1, 1)["peak"] for task in ("bank", "live")}
        print(f"peak memory: banked {peaks['bank'] / 1e6:,.0f} MB, live {peaks['live'] / 1e6:,.0f} MB, "
              f"reference copy {size / 1e6:,.0f} MB")  # fmt: skip
    figures = {
        "speed_ratio": round(seconds["live"] / seconds["bank"], 3),
        "memory_saved_share": round((peaks["live"] - peaks["bank"]) / size, 3),
        "largest_relative_loss_difference": float(f"{distance:.2g}"),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
