"""The paper's grid on a tiny model: one sweep, against the method's way on today's TRL, a process a command.

Both sides start from the same SFT policy and the same tokenised preferences, train the same stages on both cores,
average the same merges and judge as many pairs in both orders with the same endpoint on loopback, which takes `--delay`
seconds a call. The method's way: `accelerate launch` (ZeRO-3, two processes) for every stage with a live reference, a
checkpoint for every q, answers one at a time, judge calls one after the other. What each part took is printed, so that
the ratio without judging can be read off too.
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

from sacpo.cluster import executor, tuner
from sacpo.execution.runner import Runner
from sacpo.planning.planner import make_plan
from sacpo.results import tables
from sacpo.spaces.loading import load_space
from sacpo.store.step_store import Store
from tests.benchmarks.stage_overhead import launch
from tests.benchmarks.stage_overhead import settings as stage_settings
from tests.commands import sweep, write_space
from tests.servers import Behaviour, Say, scripted, verdict
from tests.spaces import ROOT, small

CHAIN = "dpo:helpfulness>dpo:harmlessness"
BETA, KL, RATIOS, CONSERVATIVE = 2.0, [2.0, 1.0, 0.5, 0.2], [0.25, 0.5, 0.75], 0.2  # lambda = 1, 2, 4, 10
DPO = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 64, "lr_scheduler": "constant", "warmup_ratio": 0.0}


def serve(pipe: Connection, delay: float) -> None:
    """Tell the address of a judge that takes its time, and end it when told to."""

    def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        return Say(verdict("A" if len(first) > len(second) else "B"), delay=delay)

    with scripted(policy) as server:
        pipe.send(server.base_url)
        pipe.recv()


def grid(base_url: str) -> dict[str, Any]:
    """The space: one stage 1, four stages 2 at the paper's lambdas, three merges with the conservative one."""
    judge = {
        "kind": "llm",
        "model": "scripted",
        "base_url": base_url,
        "api_key_env": None,
        "calls": {"concurrency": 64},
    }
    data = small(chains=[{"chain": CHAIN, "beta": BETA, "beta_over_lambda": KL}], training__dpo=DPO)
    data["merges"] = [
        {"method": "p-sacpo", "chain": CHAIN, "beta": BETA, "beta_over_lambda": CONSERVATIVE, "q": RATIOS}
    ]
    data["evaluation"]["sentinels"] = []
    for criterion in ("helpfulness", "harmlessness"):
        data["evaluation"][criterion]["judge"] = judge
    return data


def plain(command: str, **values: Any) -> None:
    """One of the plain scripts, in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.plain", command, json.dumps(values)],
        check=True, cwd=ROOT, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "2"},
    )  # fmt: skip


def method_way(root: Path, inputs: dict[str, str], prompts: dict[str, list[str]], generation: dict[str, Any],
               base_url: str) -> Counter[str]:  # fmt: skip
    """The seconds of each part of the method's way."""
    seconds: Counter[str] = Counter()

    def timed(part: str, started: float) -> None:
        seconds[part] += time.monotonic() - started

    settings = stage_settings(2, 1)
    policies = {"sft": inputs["sft"]}
    stages = [("first", "sft", "helpfulness", BETA), *((f"second-{kl}", "first", "harmlessness", kl) for kl in KL)]
    for name, start, objective, kl in stages:
        started = time.monotonic()
        launch(2, root / name, policy=policies[start], data=inputs[objective], kl_parameter=kl, settings=settings)
        policies[name] = str(root / name)
        timed("training", started)
    for q in RATIOS:
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=float, default=0.25, help="seconds that the judge takes for a call")
    delay = parser.parse_args().delay
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, delay), daemon=True)
    process.start()
    base_url = here.recv()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        path, store = write_space(grid(base_url), root), Store(root / "store")
        plan = make_plan(load_space(path))
        stages = [s for s in plan.steps.values() if s.kind == "train" and s.payload["method"] == "dpo"]
        datas = {s.payload["objective"]: s.parents["data"] for s in stages}
        inputs = {"sft": plan.baseline.policy["policy"], **datas}
        with tuner.cluster("local", num_cpus=2):  # what both sides start from
            for step in inputs.values():
                Runner(plan, store, "inputs", executor.execute).ensure(step)
        ready = {name: str(store.output(step)) for name, step in inputs.items()}
        prompts = {name: [prompt.text for prompt in found] for name, found in plan.prompts.items()}
        theirs = method_way(root, ready, prompts, plan.space.evaluation.generation.model_dump(), base_url)
        started = time.monotonic()
        done = sweep(path, root / "results", "--store", str(root / "store"), "--skip-canaries")  # the others have none
        ours = time.monotonic() - started
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        steps = tables.load(root / "results").steps
        calls = len(tables.load(root / "results").verdicts)
    here.send("end")
    total = sum(theirs.values())
    for part, value in theirs.items():
        print(f"the method's way, {part:10} {value:7.1f} s")
    print(steps[~steps["reused"]].groupby("kind")["seconds"].agg(["count", "sum"]).round(1).to_string())
    figures = {
        "wall_ratio": round(total / ours, 2),
        "method_seconds": round(total, 1),
        "sweep_seconds": round(ours, 1),
        "wall_ratio_without_judging": round((total - theirs["judging"]) / ours, 2),
        "verdicts": calls,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
