"""Packed against padded DPO training, on the lengths of hh-rlhf and of PKU-SafeRLHF.

One update after the other of a random Llama, in this process, with the same examples both ways: padded as TRL pads,
the longest examples first, or packed with a pair's prompt once. Seconds are CPU seconds of the process, so that other
work on the machine does not count. Lengths are those of the given files, or of pairs at equally spaced quantiles of the
pairs' total length in hh-rlhf helpful-base (test) and PKU-SafeRLHF, as SmolLM2's tokenizer counts them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.benchmarks._options import parse

QUANTILES = Path(__file__).with_name("packing_lengths.csv")
"""(prompt, chosen, rejected) tokens of pairs at equally spaced quantiles of their sum."""


def lengths_of(path: Path) -> np.ndarray:
    """(prompt, chosen, rejected) words and punctuation marks of each pair of a file, plain or gzipped JSON lines.

    Args:
        path: Rows with `prompt`, `chosen` and `rejected`, or hh-rlhf's transcripts `chosen` and `rejected`.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    mark, result = "\n\nAssistant:", []
    with opener(path, "rt") as file:
        for row in map(json.loads, file):
            prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
            if prompt is None:
                end = chosen.rindex(mark) + len(mark)
                prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
            result.append([max(1, len(re.findall(r"\w+|[^\w\s]", text))) for text in (prompt, chosen, rejected)])
    return np.array(result)


def make_inputs(root: Path, lengths: np.ndarray, options: argparse.Namespace) -> int:
    """Write a random policy, pairs and their reference log-probabilities; returns the length of the longest text."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from sacpo.execution.artifacts import EXAMPLES
    from sacpo.planning.payloads import ReferencePayload
    from sacpo.steps import reference
    from sacpo.steps.model import world_tokenizer
    from tests.jobs import job

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    chosen = lengths[random.integers(0, len(lengths), options.updates * options.batch_size)]
    longest = int((chosen[:, 0] + chosen[:, 1:].max(1)).max())
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.width // 64),
        num_key_value_heads=max(1, options.width // 64),
        max_position_embeddings=longest,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(root / "policy")
    world_tokenizer().save_pretrained(root / "policy")
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [
        {name: random.integers(64, options.vocabulary, n).tolist() for name, n in zip(names, row, strict=True)}
        for row in chosen.tolist()
    ]
    (root / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), root / "data" / EXAMPLES)
    parents = {name: root / name for name in ("policy", "data")}
    reference.run(job(root / "reference", "reference", ReferencePayload(shape="pairs", max_length=longest), parents))
    return longest


def train(root: Path, longest: int, packing: bool, options: argparse.Namespace) -> tuple[Any, list[float]]:
    """Train one stage in this process; returns its throughput, in CPU seconds, and its losses."""
    from sacpo.planning.metrics import TrainMetrics
    from sacpo.planning.payloads import DPOPayload
    from sacpo.spaces.training import DPOTraining
    from sacpo.steps.train import run_alone
    from tests.jobs import job

    settings = DPOTraining(learning_rate=1e-4, batch_size=options.batch_size, lr_scheduler="constant", warmup_ratio=0.0)
    payload = DPOPayload(
        method="dpo", objective="o", settings=settings, kl_parameter=0.1, seed=0, dtype="float32", max_length=longest
    )
    out = root / f"packing-{packing}"
    parents = {name: root / name for name in ("policy", "data", "reference")}
    with mock.patch("sacpo.steps.throughput.time", SimpleNamespace(monotonic=time.process_time)):
        metrics = run_alone(job(out, "train", payload, parents, sharding="ddp", packing=packing)).metrics
    assert isinstance(metrics, TrainMetrics)
    return metrics.throughput, [entry["loss"] for entry in json.loads((out / "history.json").read_text())]


def main() -> None:
    """Train both ways on both sets of lengths; print speeds, padding and the difference of the losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hh", type=Path, help="hh-rlhf pairs (JSON lines) whose lengths replace the table's")
    parser.add_argument("--pku", type=Path, help="PKU-SafeRLHF pairs (JSON lines) whose lengths replace the table's")
    parser.add_argument("--updates", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64, help="pairs in an update")
    parser.add_argument("--width", type=int, default=576, help="hidden size; the default is SmolLM2-135M's")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=49152)
    options = parse(parser, updates=1, batch_size=8, width=16, layers=1, vocabulary=256)
    quantiles = pd.read_csv(QUANTILES)
    figures, padding, gap = {}, [], 0.0
    for name, path, figure in (("hh", options.hh, "speed_ratio"), ("pku", options.pku, "speed_ratio_short_prompts")):
        lengths = lengths_of(path) if path else quantiles[quantiles["data"] == name].drop(columns="data").to_numpy()
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            longest = make_inputs(root, lengths, options)
            padded, padded_losses = train(root, longest, False, options)
            packed, packed_losses = train(root, longest, True, options)
        figures[figure] = round(padded.training_seconds / packed.training_seconds, 3)
        padding.append(packed.padding_fraction)
        gap = max(gap, float(np.abs(np.array(packed_losses) / np.array(padded_losses) - 1).max()))
        print(
            f"{name}: padded {padded.training_seconds:.1f} s, {padded.computed_tokens:,} tokens and "
            f"{padded.padding_fraction:.0%} padding; packed {packed.training_seconds:.1f} s, "
            f"{packed.computed_tokens:,} tokens and {packed.padding_fraction:.0%} padding"
        )
    figures |= {"padding_share": round(max(padding), 4), "largest_relative_loss_difference": float(f"{gap:.2g}")}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
