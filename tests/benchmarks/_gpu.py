"""The parts of `tests.benchmarks.gpu`. Each is a function for a process of its own, and returns its figures.

They train and answer by the sweep's own steps, with a Llama of random weights and random pairs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
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


def make(root: Path, shape: str, pairs: int, length: int, dtype: str) -> dict[str, Any]:
    """Write a random policy, random pairs whose lengths are between 1/4 and 1/1 of `length`, and the reference step."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sacpo.execution.artifacts import EXAMPLES
    from sacpo.planning.payloads import ReferencePayload
    from sacpo.steps import reference
    from sacpo.steps.model import world_tokenizer
    from tests.jobs import job

    hidden, intermediate, layers, heads, key_value, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_value, max_position_embeddings=2 * length,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a CPU draws 7B numbers in minutes
        policy = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    policy.save_pretrained(root / "policy")
    world_tokenizer().save_pretrained(root / "policy")
    del policy
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
    started = time.monotonic()
    payload = ReferencePayload(shape="pairs", max_length=length)
    parents = {name: root / name for name in ("policy", "data")}
    reference.run(job(root / "reference", "reference", payload, parents, per_device_batch=min(4, pairs)))
    return {"reference_seconds": time.monotonic() - started}


def train(root: Path, name: str, batch: int, length: int, dtype: str, lora: bool = False, **resources: Any) -> Any:
    """Train one stage under ZeRO-3 in this process; returns (throughput, losses), or None if memory is too small."""
    import torch

    from sacpo.cluster.worker import deepspeed_config
    from sacpo.execution.report import StepReport
    from sacpo.planning.metrics import TrainMetrics
    from sacpo.planning.payloads import DPOPayload
    from sacpo.spaces.training import DPOTraining
    from sacpo.steps.train import run
    from sacpo.steps.worker_context import WorkerContext
    from tests.jobs import job

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= group
    settings = DPOTraining.model_validate(
        {"learning_rate": 1e-6, "batch_size": batch, "lr_scheduler": "constant", "warmup_ratio": 0.0,
         "gradient_checkpointing": True, "lora": {} if lora else None}
    )  # fmt: skip
    payload = DPOPayload(method="dpo", objective="o", settings=settings, kl_parameter=0.1, seed=0, dtype=dtype,
                         max_length=length)  # fmt: skip
    parents = {parent: root / parent for parent in ("policy", "data", "reference")}
    resources = {"cpus_per_worker": min(4, os.cpu_count() or 1), "gpus_per_worker": int(torch.cuda.is_available()),
                 "checkpoint_steps": 10**6, "per_device_batch": batch} | resources  # fmt: skip
    stage = job(root / name, "train", payload, parents, **resources)
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
        return None
    assert isinstance(metrics, TrainMetrics)
    assert metrics.throughput is not None
    losses = [entry["loss"] for entry in json.loads((root / name / "history.json").read_text())]
    return metrics.throughput.model_dump(exclude_none=True), losses


def answers(root: Path, engine: str, prompts: int, new_tokens: int, batch: int) -> tuple[list[list[int]], float]:
    """Greedy answers to random prompts by one of the sweep's engines, and the seconds they took."""
    import torch

    from sacpo.spaces.evaluation import Generation
    from sacpo.steps.engines import ENGINES
    from sacpo.steps.policies import load_policy

    model, tokenizer = load_policy({"policy": root / "policy"})
    rng = np.random.default_rng(1)
    ids = [rng.integers(64, model.config.vocab_size, int(rng.integers(16, 65))).tolist() for _ in range(prompts)]
    settings = Generation(temperature=0.0, max_new_tokens=new_tokens, batch_size=batch)
    started = time.monotonic()
    with torch.no_grad():
        made, _ = ENGINES[engine](model, tokenizer, ids, settings)
    return made, time.monotonic() - started


def sweep_with_a_kill(root: Path, gpus: int) -> dict[str, Any]:
    """A tiny sweep through Ray; a training worker is killed after its first checkpoint, and the stage resumes."""
    import psutil

    from sacpo.results import load
    from tests.commands import arguments, write_space
    from tests.killing import known_checkpoints
    from tests.spaces import ROOT, small

    space = small(merges=[], resources__gpus_per_worker=gpus, resources__checkpoint_steps=1, training__sft__epochs=20)
    if not gpus:  # an update takes much longer
        space["training"]["sft"]["epochs"] = 3
        space["chains"][0]["chain"] = "dpo:helpfulness"
        del space["chains"][0]["beta_over_lambda"]
    results, log = root / "results", root / "log"
    started = time.monotonic()
    with log.open("wb") as output:
        command = arguments(write_space(space, root), results)
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        while not any(known_checkpoints(folder) for folder in results.glob("store/checkpoints/*")):
            if process.poll() is not None:
                raise RuntimeError(log.read_text()[-3000:])
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child.pid for child in children if "RayTrainWorker" in " ".join(child.cmdline())]
        os.kill(workers[0], signal.SIGKILL)
        if process.wait():
            raise RuntimeError(log.read_text()[-3000:])
    finally:
        process.terminate()
        process.wait()
    done = load(results)
    records = [json.loads(path.read_text()) for path in results.glob("store/steps/train-*/record.json")]
    return {
        "sweep_seconds": time.monotonic() - started,
        "sweep_trials_done": int((done.trials["status"] == "done").sum()),
        "sweep_stages_resumed": sum(record["metrics"]["resumed"] for record in records),
    }
