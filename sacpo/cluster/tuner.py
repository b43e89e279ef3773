"""Trials on Ray Tune: one Tune trial a policy, on the head node, holding neither CPU nor accelerator.

A trial does light steps, whichever is next, until its own are resolved. What holds CPUs and accelerators are the steps'
worker groups and tasks (`sacpo.cluster.executor`), each of which gets all it needs at once or waits, so nothing that is
waited for can be kept from starting by what waits.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune

from sacpo.cluster import executor
from sacpo.cluster.dispatch import Dispatcher, attempt
from sacpo.errors import ClusterError
from sacpo.execution.job import worker_resources
from sacpo.execution.runner import Executor, Runner
from sacpo.planning.plan import Plan
from sacpo.store.step_store import Store

_TRIAL_BYTES = 500 * 2**20  # what a waiting trial's process takes
_MOST_TRIALS = 64  # under way at once: they only wait, and do light steps
HEAD = "node:__internal_head__"  # Ray's own resource: there is one on every cluster's head, and nowhere else
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
_LOCAL = {
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process for what happens to nodes
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
    with _environment(_ENVIRONMENT):
        try:
            if address == "local":
                with _environment({name: os.environ.get(name, value) for name, value in _LOCAL.items()}):
                    ray.init(address="local", include_dashboard=True, dashboard_host="127.0.0.1", **_QUIET, **local)
            else:
                _reach(address)
                ray.init(address=address, runtime_env={"env_vars": _ENVIRONMENT}, **_QUIET)
        except (OSError, ValueError, RuntimeError) as error:
            way_out = "use `local`, or give the address of one that runs"
            # Ray's client looks for no token by itself, and takes a refusal for silence.
            if address.startswith("ray://"):
                way_out += "; if it wants a token, set RAY_AUTH_MODE=token here and have the token in ~/.ray/auth_token"
            raise ClusterError(
                f"--address {address}: no Ray cluster there ({str(error).splitlines()[0]}); {way_out}"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables for the processes that are started meanwhile; a cluster that is asked for later is another one."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _reach(address: str) -> None:
    """Try a host and port by hand: Ray itself waits for minutes where nobody listens."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}


def capacity(plan: Plan, max_workers: int = 0) -> int:
    """How many workers of this plan fit the cluster at once, in whole groups.

    Args:
        plan: The plan.
        max_workers: Workers that a cluster that grows on demand may come to have, where that is more.

    Raises:
        ClusterError: not one group does; says what it needs and what there is.
    """
    resources = plan.space.resources
    need = worker_resources(resources.model_dump())
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    workers = sum(
        min((math.floor(node.get(key, 0) / amount) for key, amount in need.items()), default=0) for node in nodes
    )
    workers = max(workers, max_workers)
    if workers < resources.workers:
        there = ", ".join(f"{sum(node.get(key, 0) for node in nodes):g} {key}" for key in need)
        wanted = ", ".join(f"{amount:g} {key}" for key, amount in need.items())
        raise ClusterError(
            f"no trial can ever run: a training step needs {resources.workers} workers with {wanted} each, and the "
            f"cluster has {there} on {len(nodes)} node(s), room for {workers}; "
            "set resources.workers, cpus_per_worker or gpus_per_worker lower, or add nodes; of a cluster that adds "
            "them itself say with --max-workers how many workers it may come to have"
        )
    return workers - workers % resources.workers


def concurrency(groups: int) -> int:
    """How many trials may be under way, and with them light steps, where so many worker groups fit."""
    return min(groups + 1, _MOST_TRIALS)


def run_trials(
    plan: Plan,
    store: Store,
    run: str,
    folder: Path,
    execute: Executor = executor.execute,
    max_workers: int = 0,
    left: Sequence[str] | None = None,
) -> dict[str, str]:
    """Run the plan's trials to their ends. Success and failure are read from the store, not from Tune.

    Args:
        plan: The plan.
        store: Where its steps are.
        run: Id of this run.
        folder: Where Tune keeps its own files.
        execute: Carries steps out.
        max_workers: See `capacity`.
        left: Ids of the trials of which something is to be done; none: all. Others would cost Tune's time for nothing.

    Returns:
        Steps that were given up without an outcome in the store, and why: mostly the store's fault.
    """
    workers = capacity(plan, max_workers)
    left = [trial.trial_id for trial in plan.trials] if left is None else left
    head = next(node["Resources"] for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"])
    room = int(head.get("memory", 0) // (2 * _TRIAL_BYTES))
    trials = max(1, min(len(left), concurrency(workers // plan.space.resources.workers), room))
    runner = Runner(plan, store, run, execute)
    dispatcher = Dispatcher.options(  # type: ignore[attr-defined]
        name=_dispatcher(run),
        num_cpus=0,
        resources={HEAD: 0.0001},
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=2 * trials + 3,
        runtime_env={"env_vars": _own_address()},
        # The next group is about to start before its turn.
    ).remote(runner, left, workers + plan.space.resources.workers, trials)
    runner_ref = ray.put(runner)
    trainable = tune.with_resources(
        tune.with_parameters(_trial, runner=[runner_ref], run=run, dispatcher=dispatcher),
        tune.PlacementGroupFactory([{HEAD: 0.0001, "memory": _TRIAL_BYTES}]),
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(left))},
        tune_config=tune.TuneConfig(max_concurrent_trials=trials, reuse_actors=True),
        run_config=tune.RunConfig(
            name=run,
            storage_path=str(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=2),
            callbacks=[_Lost(dispatcher)],
        ),
    )
    try:
        tuner.fit()
        given_up: dict[str, str] = ray.get(dispatcher.given_up.remote())
        return given_up
    finally:
        ray.kill(dispatcher)  # and with it what it started, should the trials have ended before


def resolved(run: str) -> set[str]:
    """Steps of a run, started by this driver, that have ended; none before it runs and after.

    Args:
        run: Its id.
    """
    try:
        found: set[str] = ray.get(ray.get_actor(_dispatcher(run)).resolved.remote(), timeout=30)
    except (ValueError, ray.exceptions.RayError):  # there is none, or it is being started again
        return set()
    return found


def _dispatcher(run: str) -> str:
    return f"dispatcher {run}"


def _own_address() -> dict[str, str]:
    """The cluster's address for what is started below.

    Ray Train's cleaner, which takes back what a killed run held, asks Ray's state API about it, and that gives up where
    it finds several clusters on one machine.
    """
    return {} if ray.util.client.ray.is_connected() else {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


class _Lost(tune.Callback):  # type: ignore[misc]
    """Tells the dispatcher of a trial that has ended for good without saying so."""

    def __init__(self, dispatcher: Any) -> None:
        self.dispatcher = dispatcher

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.dispatcher.lost.remote(trial.config["trial"])


_runners: dict[str, Runner] = {}  # by run; a process that has done one trial does others, and a plan can be large


def _trial(config: dict[str, Any], runner: list[Any], run: str, dispatcher: Any) -> None:
    """One trial: carries out what it is handed until it may leave."""
    trial: str = config["trial"]
    if run not in _runners:
        _runners[run] = ray.get(runner[0])
    ended = None
    while (step := ray.get(dispatcher.take.remote(trial, ended))) is not None:
        ended = attempt(_runners[run], step)
    tune.report({"trial_id": trial})
