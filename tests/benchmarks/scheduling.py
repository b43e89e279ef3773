"""Wall time of the schedule over its lower bound, and the cost of this package on top of bare Ray Tune.

On logical slots of a real Ray cluster, steps sleep in proportion to the time that real steps take on one node's
accelerators. The same ordering code also runs in a simulation, up to 512 slots. Wall time is compared with the larger
of the critical path and work / slots, which no schedule can beat. The own cost is measured on 1,000 trials of one empty
step, beside 1,000 empty trials of bare Tune under the same settings. Each side has a cluster of its own, since the
remains of 1,000 Tune trials slow down later work.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray import tune

from sacpo.cluster import tuner
from sacpo.execution.job import Job
from sacpo.hashing import content_id
from sacpo.planning.plan import Plan, Trial
from sacpo.planning.planner import make_plan
from sacpo.planning.records import StepResult
from sacpo.planning.schedule import Pool, Schedule, ScheduledStep, scheduled_steps
from sacpo.store.step_store import Store
from tests.benchmarks._options import parse
from tests.jobs import empty_result
from tests.spaces import space

# Seconds of a step by kind: a training takes an hour, answers take ten minutes. Sleeping steps take a share of it.
SECONDS = {"train": 3600.0, "reference": 600.0, "generate": 600.0, "probabilities": 60.0, "judge": 120.0, "data": 60.0}
# Slots of a real cluster: (seeds, ratios, merges per ratio) of the grid that runs on it.
SHAPES = {2: (1, 1, 1), 8: (16, 5, 1), 32: (8, 4, 2)}


def grid(seeds: int, ratios: int, q: int) -> Plan:
    """The shape of the paper's grid: per seed one stage 1, `ratios` stages 2 on it, `q` merges of each."""
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
    """Seconds of each step: those of its kind, at random about 20 % more or less."""
    spread = np.random.default_rng(0).lognormal(0, 0.2, len(plan.steps))
    return {
        step_id: SECONDS.get(step.kind, 10.0) * float(x)
        for (step_id, step), x in zip(plan.steps.items(), spread, strict=True)
    }


def bound(graph: dict[str, ScheduledStep], seconds: dict[str, float], slots: int) -> float:
    """The larger of the critical path and work / slots."""
    ends: dict[str, float] = {}

    def end(step: str) -> float:
        if step not in ends:
            ends[step] = seconds[step] + max((end(parent) for parent in graph[step].parents), default=0.0)
        return ends[step]

    work = sum(step.slots * seconds[step_id] for step_id, step in graph.items())
    return max(max(end(step) for step in graph), work / slots)


def simulate(plan: Plan, seconds: dict[str, float], slots: int) -> float:
    """Seconds that the plan takes on `slots` slots if only the steps take time."""
    targets = [step for trial in plan.trials for step in plan.target_steps(trial)]
    schedule = Schedule(scheduled_steps(plan), targets, set(), slots, tuner.concurrency(slots))
    running: list[tuple[float, str]] = []
    now = 0.0
    while not schedule.is_finished():
        for pool in (Pool.WORKERS, Pool.DRIVER):
            while (step := schedule.pop_ready(pool)) is not None:
                heapq.heappush(running, (now + seconds[step], step))
        now, step = heapq.heappop(running)
        schedule.finish(step, succeeded=True)
    return now


class Sleeping:
    """An executor whose steps sleep: in a Ray task if they hold worker slots, else in the calling process."""

    def __init__(self, slots: dict[str, int], seconds: dict[str, float]) -> None:
        self.slots, self.seconds = slots, seconds

    def __call__(self, job: Job[Any]) -> StepResult:
        slots, seconds = self.slots[job.step.id], self.seconds[job.step.id]
        if slots:
            ray.get(_sleep.options(num_cpus=slots).remote(seconds))
        else:
            time.sleep(seconds)
        return empty_result(job.step.kind)


@ray.remote
def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def on_ray(plan: Plan, slots: int, target: float, folder: Path) -> tuple[float, float]:
    """(wall time, bound) of the plan on a real cluster with logical slots; times are scaled to a bound of `target`."""
    graph, seconds = scheduled_steps(plan), durations(plan)
    scale = target / bound(graph, seconds, slots)
    seconds = {step: value * scale for step, value in seconds.items()}
    with tuner.cluster("local", num_cpus=slots):
        started = time.monotonic()
        execute = Sleeping({step_id: step.slots for step_id, step in graph.items()}, seconds)
        tuner.run_trials(plan, Store(folder / "store"), "run", folder / "tune", execute)
        wall = time.monotonic() - started
    assert all(Store(folder / "store").record(step) for step in plan.steps)
    return wall, target


def do_nothing(job: Job[Any]) -> StepResult:
    """An executor that does nothing."""
    return empty_result(job.step.kind)


def own_cost(trials: int, folder: Path) -> tuple[float, float, float]:
    """(ms per trial of bare Tune, ms per trial of this package, largest growth of memory in its second half in MB)."""
    plan = make_plan(space())
    ids = [content_id("data", {"n": i}) for i in range(trials)]
    driver_side = next(step for step in plan.steps.values() if step.kind == "data")
    steps = {i: driver_side.model_copy(update={"id": i, "parents": {}}) for i in ids}
    rows = tuple(Trial(trial_id=i, label=i, method="sft", chain="", policy={"policy": i}) for i in ids)
    empty = plan.model_copy(update={"trials": rows, "steps": steps, "canaries": ()})
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
        tuner.run_trials(empty, store, "run", folder / "ours", do_nothing)
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
    """Simulate, run on Ray, measure the own cost, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=420.0, help="bound of a run on the real cluster; 0: no run")
    parser.add_argument("--trials", type=int, default=1000, help="number of empty trials; 0: none")
    parser.add_argument("--seeds", type=int, default=10, help="seeds of the simulated grid")
    parser.add_argument("--slots", type=int, nargs="+", choices=SHAPES, default=[8, 32], help="of the real clusters")
    arguments = parse(parser, seconds=2.0, trials=4, seeds=1, slots=[2])
    figures: dict[str, float] = {}
    large = grid(seeds=arguments.seeds, ratios=10, q=9)
    print(f"simulated: {len(large.trials)} trials, {len(large.steps)} steps")
    for slots in (8, 32, 512):
        seconds = durations(large)
        wall = simulate(large, seconds, slots)
        figures[f"over_bound_{slots}" if slots == 512 else f"simulated_over_bound_{slots}"] = round(
            wall / bound(scheduled_steps(large), seconds, slots), 3
        )
    for slots in arguments.slots if arguments.seconds else ():
        with tempfile.TemporaryDirectory() as temporary:
            plan = grid(*SHAPES[slots])
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
