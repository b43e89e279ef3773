"""The paper's grid at 7B on 8 cards, on paper: wall time, device-hours, idle share and cost, by the real schedule.

The plan is that of `tune_spaces/paper.yaml`, and the dispatcher's own ordering code runs it in a simulation. No step of
it was ever measured on a card, so every duration is an assumption: an option of this command, or follows from options
and from the number of parameters, tokens and prompts. What the sweep does on the CPUs alone costs no card, but time.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sacpo.planning.cost_estimate import _calls
from sacpo.planning.judge_payloads import JudgePayload
from sacpo.planning.payloads import DPOPayload, KTOPayload
from sacpo.planning.plan import Plan, Step
from sacpo.planning.planner import make_plan
from sacpo.planning.schedule import scheduled_steps
from sacpo.spaces.evaluation import LLMJudge
from sacpo.spaces.loading import load_space
from tests.benchmarks._options import parse
from tests.benchmarks.packing import QUANTILES
from tests.benchmarks.scheduling import bound, simulate
from tests.spaces import ROOT

PARAMETERS = 6.74e9  # Llama-2-7B
PROMPTS = {"helpfulness": 129, "harmlessness": 83}  # the paper's
RECOMPUTED = 8 / 6  # gradient checkpointing repeats the forward pass


def paper_plan(workers: int) -> Plan:
    """The plan of `tune_spaces/paper.yaml` with as many prompts as the paper has."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"resources.workers={workers}"]
        for criterion, count in PROMPTS.items():
            path = Path(folder) / f"{criterion}.json"
            path.write_text(json.dumps([{"prompt": f"Question {i} about {criterion}?"} for i in range(count)]))
            overrides.append(f"evaluation.{criterion}.prompts.path={path}")
        return make_plan(load_space(ROOT / "tune_spaces" / "paper.yaml", overrides), only_shown=True)


def pair_tokens() -> tuple[float, float]:
    """Mean tokens of a pair of PKU-SafeRLHF: of its prompt, and of both answers together."""
    with QUANTILES.open() as file:
        rows = [row for row in csv.DictReader(file) if row["data"] == "pku"]
    lengths = np.array([[int(row[name]) for name in ("prompt", "chosen", "rejected")] for row in rows])
    prompt, chosen, rejected = lengths.mean(axis=0)
    return float(prompt), float(chosen + rejected)


def seconds_of(step: Step, plan: Plan, options: argparse.Namespace) -> float:
    """The assumed duration of a step."""
    workers, payload = plan.space.resources.workers, step.payload
    rate = options.utilisation * options.peak * 1e12 * workers / PARAMETERS  # FLOP/s of a group, per parameter
    prompt, answers = pair_tokens()
    if isinstance(payload, DPOPayload | KTOPayload):
        tokens = options.pairs * (prompt + answers) * payload.settings.epochs
        recomputed = RECOMPUTED if payload.settings.gradient_checkpointing else 1.0
        return options.start + 6 * recomputed * tokens / rate
    if step.kind == "reference":
        return options.start + 2 * options.pairs * (prompt + answers) / rate
    if step.kind == "generate":
        generation = plan.space.evaluation.generation
        count = len(plan.prompt_sets[str(payload.prompt_set)])
        batches = math.ceil(count / generation.batch_size)
        return float(options.start + batches * generation.max_new_tokens * options.token_ms / 1e3)
    if isinstance(payload, JudgePayload):
        return calls_of(step, plan) * options.call / options.concurrency
    return float(options.other)


def calls_of(step: Step, plan: Plan) -> int:
    """Calls of a judge or canary step at most."""
    payload = step.payload
    if not isinstance(payload, JudgePayload) or not isinstance(payload.judge, LLMJudge):
        return 0
    return _calls(plan, payload, payload.judge)


def figures(workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """The simulated sweep with so many workers a stage."""
    plan = paper_plan(workers)
    graph = scheduled_steps(plan)
    seconds = {step_id: seconds_of(step, plan, options) for step_id, step in plan.steps.items()}
    wall = simulate(plan, seconds, options.cards)
    held = sum(graph[step_id].slots * value for step_id, value in seconds.items())
    calls = sum(calls_of(step, plan) for step in plan.steps.values())
    return {
        "workers": workers,
        "trials": len(plan.trials),
        "trainings": plan.trainings()[0],
        "wall_hours": round(wall / 3600, 2),
        "over_bound": round(wall / bound(graph, seconds, options.cards), 3),
        "device_hours": round(options.cards * wall / 3600, 1),
        "idle_share": round(1 - held / (options.cards * wall), 3),
        "cards_cost": round(options.cards * wall / 3600 * options.card_price, 2),
        "judge_calls": calls,
        "judge_cost": round(calls * options.call_price, 2),
    }


def main() -> None:
    """Simulate, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", type=int, default=8, help="cards of the cluster")
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 4, 2], help="cards of one stage")
    parser.add_argument("--peak", type=float, default=989.0, help="dense bfloat16 TFLOP/s of a card (H100, H200)")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that is reached")
    parser.add_argument("--pairs", type=int, default=26_874, help="pairs of each objective: PKU-SafeRLHF-30K's rows")
    parser.add_argument("--start", type=float, default=90.0, help="seconds before a step on cards computes")
    parser.add_argument("--token-ms", type=float, default=30.0, help="milliseconds of one token of a batch of answers")
    parser.add_argument("--call", type=float, default=5.0, help="seconds of a judge call")
    parser.add_argument("--concurrency", type=int, default=16, help="judge calls at once")
    parser.add_argument("--other", type=float, default=60.0, help="seconds of any other step")
    parser.add_argument("--card-price", type=float, default=3.0, help="price of a card for an hour")
    parser.add_argument("--call-price", type=float, default=0.02, help="price of a judge call")
    options = parse(parser, workers=[8])
    results = [figures(workers, options) for workers in options.workers]
    for name in results[0]:
        print(f"{name:14}", *(f"{result[name]:>10}" for result in results))
    print(json.dumps({f"{name}_{r['workers']}": value for r in results for name, value in r.items()}))


if __name__ == "__main__":
    main()
