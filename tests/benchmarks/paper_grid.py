"""The paper's grid on a tiny model: one sweep, against the paper's pipeline on TRL with one process per command.

Both sides start from the same SFT policy and the same tokenised preferences, train the same stages on both cores,
average the same merges and judge equally many pairs in both orders by the same endpoint on loopback, which takes
`--delay` seconds per call. The pipeline (`tests.plain_trl`) runs `accelerate launch` (ZeRO-3, two processes) with a
live reference for every stage, writes a checkpoint for every merge ratio, answers one prompt at a time and calls the
judge in a sequential loop. The time of each part is printed, and the ratio without judging.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sacpo.execution import in_process
from sacpo.execution.runner import Runner
from sacpo.planning.payloads import DPOPayload
from sacpo.planning.planner import make_plan
from sacpo.results import load
from sacpo.spaces.loading import load_space
from sacpo.store.step_store import Store
from tests import plain_trl
from tests.benchmarks._options import is_smoke, parse, run_sweep
from tests.benchmarks.stage_overhead import launch
from tests.benchmarks.stage_overhead import settings as stage_settings
from tests.commands import write_space
from tests.servers import Behaviour, Say, scripted, verdict
from tests.spaces import ROOT, small

CHAIN = "dpo:helpfulness>dpo:harmlessness"
BETA, CONSERVATIVE = 2.0, 0.2
DPO = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 64, "lr_scheduler": "constant", "warmup_ratio": 0.0}


def serve(pipe: Connection, delay: float) -> None:
    """Run a judge that takes `delay` seconds per call; send its address, and stop at the first message."""

    def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        return Say(verdict("A" if len(first) > len(second) else "B"), delay=delay)

    with scripted(policy) as server:
        pipe.send(server.base_url)
        pipe.recv()


def grid(base_url: str, kl_parameters: list[float], ratios: list[float]) -> dict[str, Any]:
    """The space: one stage 1, a stage 2 per KL parameter, merges with the most conservative stage 2."""
    judge = {
        "kind": "llm",
        "model": "scripted",
        "base_url": base_url,
        "api_key_env": None,
        "calls": {"concurrency": 64},
    }
    data = small(chains=[{"chain": CHAIN, "beta": BETA, "beta_over_lambda": kl_parameters}], training__dpo=DPO)
    data["merges"] = [
        {"method": "p-sacpo", "chain": CHAIN, "beta": BETA, "beta_over_lambda": CONSERVATIVE, "q": ratios}
    ]
    data["evaluation"]["sentinels"] = []
    for criterion in ("helpfulness", "harmlessness"):
        data["evaluation"][criterion]["judge"] = judge
    return data


def plain(command: str, **values: Any) -> None:
    """Run one command of `tests.plain_trl` in a process of its own; with `--smoke` in the calling process."""
    if is_smoke():
        plain_trl.run(command, values)
        return
    subprocess.run(
        [sys.executable, "-m", "tests.plain_trl", command, json.dumps(values)],
        check=True, cwd=ROOT, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "2"},
    )  # fmt: skip


def pipeline(root: Path, inputs: dict[str, str], prompts: dict[str, list[str]], generation: dict[str, Any],
             base_url: str, kl_parameters: list[float], ratios: list[float]) -> Counter[str]:  # fmt: skip
    """Seconds of each part of the paper's pipeline."""
    seconds: Counter[str] = Counter()

    def timed(part: str, started: float) -> None:
        seconds[part] += time.monotonic() - started

    workers = 1 if is_smoke() else 2
    settings = stage_settings(workers, 1)
    policies = {"sft": inputs["sft"]}
    stages = [
        ("first", "sft", "helpfulness", BETA),
        *((f"second-{kl}", "first", "harmlessness", kl) for kl in kl_parameters),
    ]
    for name, start, objective, kl in stages:
        started = time.monotonic()
        launch(workers, root / name, policy=policies[start], data=inputs[objective], kl_parameter=kl,
               settings=settings)  # fmt: skip
        policies[name] = str(root / name)
        timed("training", started)
    for q in ratios:
        started = time.monotonic()
        policies[f"q={q}"] = str(root / f"q={q}")
        plain("merge", first=policies["first"], second=policies[f"second-{CONSERVATIVE}"], q=q, out=policies[f"q={q}"])
        timed("merging", started)
    for criterion, texts in prompts.items():
        (root / criterion).write_text(json.dumps(texts))
        for name, policy in policies.items():
            started = time.monotonic()
            plain("answer", policy=policy, prompts=str(root / criterion), out=str(root / f"{criterion}-{name}"),
                  samples=generation["samples"], max_new_tokens=generation["max_new_tokens"])  # fmt: skip
            timed("answering", started)
            started = time.monotonic()
            plain("judge", answers=str(root / f"{criterion}-{name}"), baseline=str(root / f"{criterion}-sft"),
                  base_url=base_url, out=str(root / f"{criterion}-{name}-verdicts"))  # fmt: skip
            timed("judging", started)
    return seconds


def main() -> None:
    """Run both sides and print the ratio of their wall times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.25, help="seconds that the judge takes per call")
    parser.add_argument("--kl-parameters", type=float, nargs="+", default=[2.0, 1.0, 0.5, CONSERVATIVE],
                        help=f"beta/lambda of the stages 2; lambda = {BETA} / value")  # fmt: skip
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="q of the merges")
    parser.add_argument("--address", default="local", help="passed on to the sweep")
    options = parse(parser, delay=0.0, kl_parameters=[CONSERVATIVE], ratios=[0.5], address="in-process")
    context = multiprocessing.get_context("spawn")
    pipe, server_pipe = context.Pipe()
    process = context.Process(target=serve, args=(server_pipe, options.delay), daemon=True)
    process.start()
    base_url = pipe.recv()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        path, store = write_space(grid(base_url, options.kl_parameters, options.ratios), root), Store(root / "store")
        plan = make_plan(load_space(path))
        stages = [(s, s.payload) for s in plan.steps.values() if isinstance(s.payload, DPOPayload)]
        datas = {payload.objective: step.parents["data"] for step, payload in stages}
        inputs = {"sft": plan.baseline.policy["policy"], **datas}
        for step in inputs.values():  # both sides start from these
            Runner(plan, store, "inputs", in_process.execute).ensure(step)
        ready = {name: str(store.verified_output_dir(step)) for name, step in inputs.items()}
        prompts = {name: [prompt.text for prompt in rows] for name, rows in plan.prompts.items()}
        generation = plan.space.evaluation.generation.model_dump()
        other = pipeline(root, ready, prompts, generation, base_url, options.kl_parameters, options.ratios)
        started = time.monotonic()
        run_sweep(path, root / "results", "--store", str(root / "store"), "--address", options.address,
                  "--skip-canaries")  # the pipeline has no canaries  # fmt: skip
        ours = time.monotonic() - started
        steps = load(root / "results").steps
        calls = len(load(root / "results").verdicts)
    pipe.send("end")
    total = sum(other.values())
    for part, value in other.items():
        print(f"the paper's pipeline, {part:10} {value:7.1f} s")
    print(steps[~steps["reused"]].groupby("kind")["seconds"].agg(["count", "sum"]).round(1).to_string())
    figures = {
        "wall_ratio": round(total / ours, 2),
        "pipeline_seconds": round(total, 1),
        "sweep_seconds": round(ours, 1),
        "wall_ratio_without_judging": round((total - other["judging"]) / ours, 2),
        "verdicts": calls,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
