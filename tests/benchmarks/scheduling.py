"""How near the schedule comes to what is possible, and what this package costs on top of bare Ray Tune.

Steps sleep, in proportion to what the like of them take on one node's accelerators, on logical slots of a real Ray
cluster; the same ordering code is then asked about 512 slots in a simulation. Wall time is held against the larger of
the critical path and work / slots, which no schedule can beat. Own cost: 1,000 trials of one step that does nothing,
beside 1,000 trials of bare Tune that do nothing, under the same settings, one after the other, each in a cluster of its
own, as what Tune leaves behind of 1,000 trials holds up what comes next.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray import tune

from sacpo.cluster import tuner
from sacpo.execution.job import Facts, Job
from sacpo.planning.identity import content_id
from sacpo.planning.plan import Plan, Step, Trial
from sacpo.planning.planner import make_plan
from sacpo.planning.schedule import Node, Schedule, nodes
from sacpo.store.step_store import Store
from tests.spaces import space

# Seconds of a step, of which the sleeping ones are a fixed share: trainings of an hour, answering of ten minutes.
SECONDS = {"train": 3600.0, "reference": 600.0, "generate": 600.0, "probabilities": 60.0, "judge": 120.0, "data": 60.0}


def grid(seeds: int, ratios: int, q: int) -> Plan:
    """The paper's shape: per seed one stage 1, `ratios` stages 2 on it, `q` merges of each."""
    kl = [round(0.5 * 1.3**i, 4) for i in range(ratios)]
    chain = "dpo:helpfulness>dpo:harmlessness"
    merge = {"method": "p-sacpo", "chain": chain, "beta": 2.0, "q": [round((i + 1) / (q + 1), 3) for i in range(q)]}
    return make_plan(
        space(
            seeds=list(range(seeds)),
            chains=[{"chain": chain, "beta": 2.0, "beta_over_lambda": kl}],
            merges=[merge | {"beta_over_lambda": kl}],
        )
    )


def durations(plan: Plan) -> dict[str, float]:
    """Seconds of each step: its kind's, 20 % more or less at random."""
    spread = np.random.default_rng(0).lognormal(0, 0.2, len(plan.steps))
    return {
        step: SECONDS.get(found.kind, 10.0) * float(x)
        for (step, found), x in zip(plan.steps.items(), spread, strict=True)
    }


def bound(graph: dict[str, Node], seconds: dict[str, float], slots: int) -> float:
    """The larger of the critical path and work / slots."""
    ends: dict[str, float] = {}

    def end(step: str) -> float:
        if step not in ends:
            ends[step] = seconds[step] + max((end(parent) for parent in graph[step].parents), default=0.0)
        return ends[step]

    work = sum(node.held * seconds[step] for step, node in graph.items())
    return max(max(end(step) for step in graph), work / slots)


def simulate(plan: Plan, seconds: dict[str, float], slots: int) -> float:
    """Seconds that the plan takes on `slots` slots where nothing but the steps takes time."""
    wanted = [step for trial in plan.trials for step in plan.required_steps(trial)]
    schedule = Schedule(nodes(plan), wanted, set(), slots, tuner.concurrency(slots))
    running: list[tuple[float, str]] = []
    now = 0.0
    while not schedule.over():
        for holds in (True, False):
            while (step := schedule.take(holds)) is not None:
                heapq.heappush(running, (now + seconds[step], step))
        now, step = heapq.heappop(running)
        schedule.finish(step, well=True)
    return now


class Sleeping:
    """An executor whose steps sleep: on the cluster those that hold places, the others where they are asked."""

    def __init__(self, held: dict[str, int], seconds: dict[str, float]) -> None:
        self.held, self.seconds = held, seconds

    def __call__(self, kind: str, job: Job) -> dict[str, Any]:
        if self.held[job.step_id]:
            ray.get(_sleep.options(num_cpus=self.held[job.step_id]).remote(self.seconds[job.step_id]))
        else:
            time.sleep(self.seconds[job.step_id])
        return Facts().as_record()


@ray.remote
def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def on_ray(plan: Plan, slots: int, target: float, folder: Path) -> tuple[float, float]:
    """(wall time, bound) of the plan on a real cluster with logical slots, scaled so that the bound is `target`."""
    graph, seconds = nodes(plan), durations(plan)
    scale = target / bound(graph, seconds, slots)
    seconds = {step: value * scale for step, value in seconds.items()}
    with tuner.cluster("local", num_cpus=slots):
        started = time.monotonic()
        execute = Sleeping({step: node.held for step, node in graph.items()}, seconds)
        tuner.run_trials(plan, Store(folder / "store"), "run", folder / "tune", execute)
        wall = time.monotonic() - started
    assert all(Store(folder / "store").record(step) for step in plan.steps)
    return wall, target


def nothing(kind: str, job: Job) -> dict[str, Any]:
    return Facts().as_record()


def own_cost(trials: int, folder: Path) -> tuple[float, float, float]:
    """(ms a trial of bare Tune, ms a trial of ours, most that all processes grew in its second half in MB)."""
    plan = make_plan(space())
    ids = [content_id("data", {"n": i}) for i in range(trials)]
    steps = {i: Step(i, "data", "nothing", {"n": i}, {}, {}) for i in ids}
    mine = replace(plan, trials=tuple(Trial(i, i, "sft", "", {"policy": i}) for i in ids), steps=steps, canaries=())
    store = Store(folder / "store")
    with tuner.cluster("local", num_cpus=2):
        started = time.monotonic()
        tune.Tuner(
            tune.with_resources(lambda config: tune.report({"trial": config["trial"]}), {"CPU": 0.001}),
            param_space={"trial": tune.grid_search(ids)},
            tune_config=tune.TuneConfig(max_concurrent_trials=tuner.concurrency(2), reuse_actors=True),
            run_config=tune.RunConfig(name="bare", storage_path=str(folder / "bare"), verbose=0),
        ).fit()
        bare = time.monotonic() - started
    with tuner.cluster("local", num_cpus=2):
        memory: list[int] = []

        def watch() -> None:
            while not over.wait(0.5):
                tree = psutil.Process().children(recursive=True)
                memory.append(sum(_rss(process) for process in [psutil.Process(), *tree]))

        over = threading.Event()
        thread = threading.Thread(target=watch)
        thread.start()
        started = time.monotonic()
        tuner.run_trials(mine, store, "run", folder / "ours", nothing)
        ours = time.monotonic() - started
        over.set()
        thread.join()
    assert all(store.record(step) for step in ids)
    late = memory[len(memory) // 2 :]
    return 1e3 * bare / trials, 1e3 * ours / trials, (max(late) - late[0]) / 2**20


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=420.0, help="least of a run on the real cluster; 0: none")
    parser.add_argument("--trials", type=int, default=1000, help="of those that do nothing; 0: none")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    large = grid(seeds=10, ratios=10, q=9)
    print(f"simulated: {len(large.trials)} trials, {len(large.steps)} steps")
    for slots in (8, 32, 512):
        seconds = durations(large)
        wall = simulate(large, seconds, slots)
        figures[f"over_bound_{slots}" if slots == 512 else f"simulated_over_bound_{slots}"] = round(
            wall / bound(nodes(large), seconds, slots), 3
        )
    for slots, shape in ((8, (16, 5, 1)), (32, (8, 4, 2))) if arguments.seconds else ():
        with tempfile.TemporaryDirectory() as temporary:
            plan = grid(*shape)
            wall, least = on_ray(plan, slots, arguments.seconds, Path(temporary))
            print(
                f"{slots} slots: {len(plan.trials)} trials, {len(plan.steps)} steps, {wall:.1f} s, bound {least:.1f} s"
            )
            figures[f"over_bound_{slots}"] = round(wall / least, 3)
    if arguments.trials:
        with tempfile.TemporaryDirectory() as temporary:
            bare, ours, growth = own_cost(arguments.trials, Path(temporary))
        figures["bare_tune_ms_per_trial"] = round(bare, 1)
        figures["own_ms_per_trial"] = round(ours - bare, 1)
        figures["memory_growth_mb"] = round(growth, 1)
    for name, value in figures.items():
        print(f"{name:24} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
