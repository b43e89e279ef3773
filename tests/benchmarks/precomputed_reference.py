"""DPO stages with precomputed reference log-probabilities, against TRL's trainer with a live reference.

One policy, one preference set, four KL parameters, three epochs each. The time of the precomputation counts on its
side. Memory is measured on a larger model, where the copy of the reference policy is not lost in the noise.
"""

from __future__ import annotations

import argparse
import functools
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

from tests.benchmarks._options import is_smoke, parse

BATCH, LENGTH = 16, 96


def make_policy(folder: Path, width: int, layers: int) -> int:
    """Write a random Llama with a tokenizer; returns the size of its weights in bytes."""
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
    """Write random pairs of many lengths."""
    from sacpo.execution.artifacts import EXAMPLES

    rng = np.random.default_rng(0)

    def draw() -> list[int]:
        return rng.integers(64, 2048, int(rng.integers(LENGTH // 4, LENGTH // 2))).tolist()

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([{name: draw() for name in names} for _ in range(rows)]), folder / EXAMPLES)


def precompute(root: Path) -> float:
    """Run the reference step in this process; returns its seconds."""
    from sacpo.planning.payloads import ReferencePayload
    from sacpo.steps import reference
    from tests.jobs import job

    payload = ReferencePayload(shape="pairs", max_length=2 * LENGTH)
    parents = {name: root / name for name in ("policy", "data")}
    started = time.monotonic()
    reference.run(job(root / "reference", "reference", payload, parents, per_device_batch=BATCH))
    return time.monotonic() - started


def train(root: Path, mode: str, kl_parameter: float, epochs: int) -> dict[str, Any]:
    """Train one stage in this process, with a `precomputed` or a `live` reference: seconds, losses, peak memory."""
    import resource

    from sacpo.planning.metrics import TrainMetrics
    from sacpo.planning.payloads import DPOPayload
    from sacpo.spaces.training import DPOTraining
    from sacpo.steps.train import run_alone
    from tests.jobs import job

    settings = DPOTraining(
        learning_rate=1e-4, epochs=epochs, batch_size=BATCH, lr_scheduler="constant", warmup_ratio=0.0
    )
    payload = DPOPayload(method="dpo", objective="o", settings=settings, kl_parameter=kl_parameter, seed=0,
                         dtype="float32", max_length=2 * LENGTH)  # fmt: skip
    out = root / f"{mode}-{kl_parameter}"
    parents = {name: root / name for name in ("policy", "data", "reference")}
    resources = {"per_device_batch": BATCH, "checkpoint_steps": 10**6, "sharding": "ddp", "reference": mode}
    started = time.monotonic()
    metrics = run_alone(job(out, "train", payload, parents, **resources)).metrics
    assert isinstance(metrics, TrainMetrics)
    return {
        "seconds": time.monotonic() - started,
        "losses": [entry["loss"] for entry in json.loads((out / "history.json").read_text())],
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def in_new_process(function: Any, *arguments: Any) -> Any:
    """Call a function in a process of its own, so that its memory is measured alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def apart(function: Any, *arguments: Any) -> Any:
    """The same; with `--smoke` in the calling process, as the start of a process takes longer than all the rest."""
    call = function if is_smoke() else functools.partial(in_new_process, function)
    return call(*arguments)


def main() -> None:
    """Train all stages in both modes and print speed, memory and the difference of the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--kl-parameters", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4])
    parser.add_argument("--width", type=int, default=192, help="hidden size of the policy whose stages are timed")
    parser.add_argument("--layers", type=int, default=6, help="its layers")
    parser.add_argument("--memory-width", type=int, default=1024, help="hidden size of the policy for the memory")
    options = parse(parser, pairs=16, epochs=1, kl_parameters=[0.1], width=32, layers=1, memory_width=32)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        make_policy(root / "policy", options.width, options.layers)
        make_pairs(root / "data", options.pairs)
        seconds = {"precomputed": apart(precompute, root), "live": 0.0}
        distance = 0.0
        print("KL parameter   precomputed s   live s")
        for value in options.kl_parameters:
            precomputed, live = (apart(train, root, mode, value, options.epochs) for mode in ("precomputed", "live"))
            seconds["precomputed"] += precomputed["seconds"]
            seconds["live"] += live["seconds"]
            gaps = np.abs(np.array(precomputed["losses"]) / np.array(live["losses"]) - 1)
            distance = max(distance, float(gaps.max()))
            print(f"{value:12g} {precomputed['seconds']:15.1f} {live['seconds']:8.1f}")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        size = make_policy(root / "policy", options.memory_width, 8)
        make_pairs(root / "data", BATCH)
        apart(precompute, root)
        peaks = {mode: apart(train, root, mode, 0.1, 1)["peak"] for mode in ("precomputed", "live")}
        print(f"peak memory: precomputed {peaks['precomputed'] / 1e6:,.0f} MB, live {peaks['live'] / 1e6:,.0f} MB, "
              f"copy of the reference policy {size / 1e6:,.0f} MB")  # fmt: skip
    figures = {
        "speed_ratio": round(seconds["live"] / seconds["precomputed"], 3),
        "memory_saved_share": round((peaks["live"] - peaks["precomputed"]) / size, 3),
        "largest_relative_loss_difference": float(f"{distance:.2g}"),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
