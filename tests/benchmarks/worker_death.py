"""Cost of `kill -9` of a training worker: wall time of a stage, against the same stage without a kill, in turns.

Two workers under ZeRO-3. The worker is killed just before a checkpoint is due, so that nearly a whole interval is
computed again. The rest of the cost is the time to notice the death and to start another worker group.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path

from sacpo.cluster import executor, tuner
from sacpo.execution import in_process
from sacpo.execution.runner import Runner
from sacpo.planning.planner import make_plan
from sacpo.store.step_store import Store
from tests.benchmarks._options import parse
from tests.killing import known_checkpoints, train_workers
from tests.spaces import space
from tests.stages import train_metrics

_KILLED_AT = 0.9  # of an interval


def main() -> None:
    """Train the stages in pairs and print the cost of a kill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--checkpoint-steps", type=int, default=150)
    arguments = parse(parser, repeats=1, epochs=12, checkpoint_steps=16)
    betas = [round(2 + 0.1 * i, 1) for i in range(2 * arguments.repeats)]
    settings = space(
        chains=[{"chain": "dpo:helpfulness", "beta": betas}],
        merges=[],
        training__dpo={"learning_rate": 1e-4, "epochs": arguments.epochs, "batch_size": 64},
        resources__workers=2,
        resources__checkpoint_steps=arguments.checkpoint_steps,
    )
    plan = make_plan(settings)
    stages = [trial.policy["policy"] for trial in plan.trials if trial.method == "one-step"]
    costs, intervals = [], []
    with tempfile.TemporaryDirectory() as temporary, tuner.cluster("local", num_cpus=2):
        store = Store(Path(temporary) / "store")
        runner = Runner(plan, store, "run", executor.execute)
        inputs = Runner(plan, store, "run", in_process.execute)
        for intact, killed in zip(stages[::2], stages[1::2], strict=True):
            for stage in (intact, killed):
                for parent in plan.steps[stage].parents.values():
                    inputs.ensure(parent)
            started = time.monotonic()
            metrics = train_metrics(runner.ensure(intact))
            undisturbed = time.monotonic() - started
            interval = arguments.checkpoint_steps * metrics.throughput.training_seconds / metrics.updates
            thread = threading.Thread(target=_kill, args=(Path(store.checkpoint_uri(killed)),))
            thread.start()
            started = time.monotonic()
            assert train_metrics(runner.ensure(killed)).resumed
            costs.append(time.monotonic() - started - undisturbed)
            intervals.append(interval)
            thread.join()
            print(f"{undisturbed:.1f} s intact, {costs[-1]:.1f} s more; an interval is {interval:.1f} s", flush=True)
    beyond = [cost - interval for cost, interval in zip(costs, intervals, strict=True)]
    figures = {
        "checkpoint_interval_seconds": round(statistics.median(intervals), 1),
        "cost_seconds": round(statistics.median(costs), 1),
        "cost_beyond_interval_seconds": round(statistics.median(beyond), 1),
        "worst_beyond_interval_seconds": round(max(beyond), 1),
    }
    print(json.dumps(figures))


def _kill(checkpoints: Path) -> None:
    """Kill a worker at `_KILLED_AT` of an interval after the second checkpoint; the interval before it is measured."""
    first = _next_checkpoint(checkpoints, "")
    started = time.monotonic()
    _next_checkpoint(checkpoints, first)
    time.sleep(_KILLED_AT * (time.monotonic() - started))
    os.kill(train_workers()[0], signal.SIGKILL)


def _next_checkpoint(checkpoints: Path, previous: str) -> str:
    """Wait for the checkpoint after `previous`."""
    while (latest := known_checkpoints(checkpoints)) in ("", previous):
        time.sleep(0.02)
    return latest


if __name__ == "__main__":
    main()
