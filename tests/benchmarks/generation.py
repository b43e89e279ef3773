"""Greedy answers of the engines that a space can choose, against one prompt at a time, on one policy and one machine.

Random weights, prompts of 8 to 128 tokens, 64 new tokens each; every engine must give the same tokens. Medians of
several turns in one process, after one turn that is not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sacpo.steps.engines import ENGINES
from sacpo.steps.model import load_policy
from tests.benchmarks.reference_bank import make_policy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(64, 2048, int(rng.integers(8, 129))).tolist() for _ in range(arguments.prompts)]
    settings = {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "batch_size": arguments.batch, "seed": 0}
    sides = {"one": ("batched", settings | {"batch_size": 1})}
    sides |= {engine: (engine, settings) for engine in ENGINES}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        make_policy(Path(temporary), arguments.width, arguments.layers)
        model, tokenizer = load_policy({"policy": Path(temporary)})
        for turn in range(arguments.repeats + 1):
            for name, (engine, chosen) in sides.items():
                started = time.monotonic()
                answers[name] = ENGINES[engine](model, tokenizer, prompts, chosen)
                if turn:
                    seconds[name].append(time.monotonic() - started)
                    print(f"{name:12} {seconds[name][-1]:7.2f} s", flush=True)
    tokens = 64 * arguments.prompts
    median = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {f"{name}_tokens_per_second": round(tokens / value, 1) for name, value in median.items()}
    figures |= {f"{name}_over_one": round(median["one"] / median[name], 2) for name in ENGINES}
    same = [sum(a == b for a, b in zip(answers[name], answers["one"], strict=True)) for name in ENGINES]
    figures["same_answers_share"] = min(same) / len(prompts)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
