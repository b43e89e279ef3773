"""Trials on Ray Tune: one Tune trial a policy, on the head node, holding neither CPU nor accelerator.

What holds them are the steps' worker groups and tasks (`sacpo.cluster.executor`), each of which gets all it needs at
once or waits, so nothing that is waited for can be kept from starting by what waits.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune

from sacpo.cluster import executor
from sacpo.errors import ClusterError, StepError
from sacpo.plan import Plan, Trial
from sacpo.runner import Runner
from sacpo.steps.job import worker_resources
from sacpo.store import Store

_TRIAL_BYTES = 500 * 2**20  # what a waiting trial's process takes
_HEAD = "node:__internal_head__"  # Ray's own resource: there is one on every cluster's head, and nowhere else
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the run at once: what is done is in the store
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",  # torch gives one a step
}


@contextmanager
def cluster(address: str, **local: Any) -> Iterator[None]:
    """A connection to a Ray cluster: `local` starts one of this machine's, anything else is Ray's own address.

    `local` are further arguments of `ray.init` for a cluster that is started.

    The dashboard runs, on loopback: Ray Train asks it whether a controller is alive before it takes the resources of a
    killed run back.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    os.environ.update(_ENVIRONMENT)
    try:
        if address == "local":
            os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
            ray.init(address="local", include_dashboard=True, dashboard_host="127.0.0.1", **_QUIET, **local)
        else:
            _reach(address)
            ray.init(address=address, runtime_env={"env_vars": _ENVIRONMENT}, **_QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        raise ClusterError(
            f"--address {address}: no Ray cluster there ({str(error).splitlines()[0]}); "
            "use `local`, or start one with `ray up cluster.yaml`"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Try a host and port by hand: Ray itself waits for minutes where nobody listens."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}


def slots(plan: Plan) -> int:
    """How many worker groups of this plan fit the cluster at once.

    Raises:
        ClusterError: not one does; says what a group needs and what there is.
    """
    resources = plan.space.resources
    need = worker_resources(resources.model_dump())
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = sum(
        min((math.floor(node.get(key, 0) / amount) for key, amount in need.items()), default=0) for node in nodes
    )
    if workers < resources.workers:
        there = ", ".join(f"{sum(node.get(key, 0) for node in nodes):g} {key}" for key in need)
        wanted = ", ".join(f"{amount:g} {key}" for key, amount in need.items())
        raise ClusterError(
            f"no trial can ever run: a training step needs {resources.workers} workers with {wanted} each, and the "
            f"cluster has {there} on {len(nodes)} node(s), room for {workers}; "
            "set resources.workers, cpus_per_worker or gpus_per_worker lower, or add nodes"
        )
    return workers // resources.workers


def concurrency(plan: Plan) -> int:
    """How many trials may be under way: enough that every slot has one that works while others wait or are judged.

    A waiting trial's step is always being worked on by a trial that runs, so any number above zero makes progress;
    memory bounds it from above.
    """
    head = next(node["Resources"] for node in ray.nodes() if node["Alive"] and _HEAD in node["Resources"])
    room = int(head.get("memory", 0) // (2 * _TRIAL_BYTES))
    return max(1, min(len(plan.trials), 2 * slots(plan) + 1, room))


def run_trials(plan: Plan, store: Store, run: str, folder: Path) -> None:
    """Run the plan's trials to their ends. Success and failure are read from the store, not from Tune.

    Args:
        plan: The plan.
        store: Where its steps are.
        run: Id of this run.
        folder: Where Tune keeps its own files.
    """
    trainable = tune.with_resources(
        tune.with_parameters(_trial, plan=plan, root=str(store.root), run=run),
        tune.PlacementGroupFactory([{_HEAD: 0.0001, "memory": _TRIAL_BYTES}]),
    )
    tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([trial.trial_id for trial in plan.trials])},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrency(plan), reuse_actors=True),
        run_config=tune.RunConfig(
            name=run, storage_path=str(folder), verbose=0, failure_config=tune.FailureConfig(max_failures=2)
        ),
    ).fit()


def _trial(config: dict[str, Any], plan: Plan, root: str, run: str) -> None:
    """One trial, in its own process: asks for its steps in order and reports its judged criteria."""
    trial = next(t for t in plan.trials if t.trial_id == config["trial"])
    tune.report({"trial_id": trial.trial_id, **_outcome(trial, Runner(plan, Store(root), run, executor.execute))})


def _outcome(trial: Trial, runner: Runner) -> dict[str, Any]:
    try:
        for step_id in runner.plan.asked_by(trial):
            runner.ensure(step_id)
    except StepError as error:
        return {"status": "failed", "error": str(error)}
    return {"status": "done"}
