"""Speed of greedy answers: each engine that a space can choose, against one prompt at a time.

One policy with random weights, prompts of 8 to 128 tokens, 64 new tokens each. Every engine must give the same tokens.
The figures are medians of several turns in one process, after a first turn that is not counted.
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

from sacpo.spaces.evaluation import Generation
from sacpo.steps.engines import ENGINES
from sacpo.steps.policies import load_policy
from tests.benchmarks._options import parse
from tests.benchmarks.precomputed_reference import make_policy
from tests.models import bound_generation_cache


def main() -> None:
    """Time every engine in turns and print tokens per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of each answer")
    arguments = parse(parser, width=32, layers=1, prompts=2, batch=2, repeats=1, new_tokens=3)
    if arguments.smoke:
        bound_generation_cache()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(64, 2048, int(rng.integers(8, 129))).tolist() for _ in range(arguments.prompts)]
    settings = Generation(max_new_tokens=arguments.new_tokens, batch_size=arguments.batch)
    sides = {"one": ("batched", settings.model_copy(update={"batch_size": 1}))}
    sides |= {engine: (engine, settings) for engine in ENGINES}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        make_policy(Path(temporary), arguments.width, arguments.layers)
        model, tokenizer = load_policy({"policy": Path(temporary)})
        for turn in range(arguments.repeats + 1):
            for name, (engine, chosen) in sides.items():
                started = time.monotonic()
                answers[name], _ = ENGINES[engine](model, tokenizer, prompts, chosen)
                if turn:
                    seconds[name].append(time.monotonic() - started)
                    print(f"{name:12} {seconds[name][-1]:7.2f} s", flush=True)
    tokens = arguments.new_tokens * arguments.prompts
    median = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {f"{name}_tokens_per_second": round(tokens / value, 1) for name, value in median.items()}
    figures |= {f"{name}_over_one": round(median["one"] / median[name], 2) for name in ENGINES}
    same = [sum(a == b for a, b in zip(answers[name], answers["one"], strict=True)) for name in ENGINES]
    figures["same_answers_share"] = min(same) / len(prompts)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
