"""Trials on Ray Tune: one Tune trial for each policy, on the head node, holding neither CPU nor accelerator.

A trial carries out driver-side steps, whichever the dispatcher hands it, until its own steps are resolved. CPUs and
accelerators are held by the worker groups and tasks of single steps (`sacpo.cluster.executor`). Each of these gets all
that it needs at once or waits, so a waiting step never holds resources that the step it waits for needs.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune

from sacpo.cluster import executor
from sacpo.cluster.dispatch import Dispatcher, attempt_step
from sacpo.compat.ray_core import HEAD_RESOURCE, IDLE_WORKER_TIMEOUT_MS, connected_by_client
from sacpo.errors import ClusterError, first_line, last_line
from sacpo.execution.output_capture import QUIET_LIBRARIES
from sacpo.execution.resources import worker_resources
from sacpo.execution.runner import Executor, Runner
from sacpo.planning.plan import Plan
from sacpo.store.step_store import Store

_TRIAL_BYTES = 500 * 2**20  # memory of a trial's process
_MAX_TRIALS = 64  # at once: they only wait and carry out driver-side steps
ENVIRONMENT = QUIET_LIBRARIES | {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the run at once: finished steps are in the store
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "PYTHONWARNINGS": "ignore::FutureWarning",  # torch gives one in every step
}
LOCAL_ENVIRONMENT = {
    IDLE_WORKER_TIMEOUT_MS: "600000",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # saves a process; a local cluster has no nodes to lose
}
_CONNECTIONS = 3  # attempts
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}


@contextmanager
def cluster(address: str, **local: Any) -> Iterator[None]:
    """A connection to a Ray cluster.

    The dashboard of a local cluster runs, on the loopback: Ray Train asks it whether a controller is alive before it
    takes the resources of a killed run back.

    Args:
        address: `local` starts a cluster on this machine; anything else is Ray's own address.
        local: Further arguments of `ray.init` for a cluster that is started.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    handler = signal.getsignal(signal.SIGTERM)
    with _environment(ENVIRONMENT):
        try:
            if address == "local":
                with _environment({name: os.environ.get(name, value) for name, value in LOCAL_ENVIRONMENT.items()}):
                    ray.init(address="local", include_dashboard=True, dashboard_host="127.0.0.1", **_QUIET, **local)
            else:
                _connect(address)
        except ConnectionAbortedError as error:
            raise ClusterError(
                f"--address {address}: the Ray cluster there starts no process for this command ({last_line(error)}); "
                "its head node is busy or has just started: repeat the command"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            way_out = "use `local`, or give the address of a running cluster"
            # Ray Client does not look for a token by itself, and reports a refused token as no answer.
            if address.startswith("ray://"):
                way_out += (
                    "; if the cluster requires a token, set RAY_AUTH_MODE=token here and put the token into "
                    "~/.ray/auth_token"
                )
            raise ClusterError(f"--address {address}: no Ray cluster there ({first_line(error)}); {way_out}") from error
        # Ray installs a handler that aborts the process three seconds after SIGTERM, in the middle of the stop.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started meanwhile, and restore them afterwards."""
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


def _connect(address: str) -> None:
    """Connect to a running cluster.

    Ray Client's server starts a process for each client. It gives up after 30 seconds, and also where the agent that it
    asks is not up yet, so a head node that is busy or has just started is asked three times.

    Raises:
        OSError: nothing listens at a HOST:PORT (Ray itself would wait for minutes), or the server gave up three times
            (ConnectionAbortedError).
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
    for attempt in range(_CONNECTIONS):
        try:
            ray.init(address=address, runtime_env={"env_vars": ENVIRONMENT}, **_QUIET)
            return
        except ConnectionAbortedError:
            if attempt == _CONNECTIONS - 1:
                raise


def capacity(plan: Plan, max_workers: int = 0) -> int:
    """How many workers of a plan fit the cluster at once.

    Args:
        plan: The plan.
        max_workers: Workers that the cluster can grow to, if it adds nodes on demand and this is more than fit now.

    Raises:
        ClusterError: not one group fits; says what it needs and what the cluster has.
    """
    resources = plan.space.resources
    per_worker = worker_resources(resources)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = [min(math.floor(node.get(key, 0) / amount) for key, amount in per_worker.items()) for node in nodes]
    workers: int = max(sum(fitting), max_workers)
    if workers < resources.workers:
        available = ", ".join(f"{sum(node.get(key, 0) for node in nodes):g} {key}" for key in per_worker)
        needed = ", ".join(f"{amount:g} {key}" for key, amount in per_worker.items())
        raise ClusterError(
            f"no trial can ever run: a training step needs {resources.workers} workers with {needed} each, and the "
            f"cluster has {available} on {len(nodes)} node(s), enough for {workers}; "
            "set resources.workers, cpus_per_worker or gpus_per_worker lower, or add nodes; for a cluster that adds "
            "nodes on demand, give the number of workers that it can grow to with --max-workers"
        )
    return workers


def concurrency(groups: int) -> int:
    """How many trials, and thus driver-side steps, may run at once if so many worker groups fit the cluster."""
    return min(groups + 1, _MAX_TRIALS)


def run_trials(
    plan: Plan,
    store: Store,
    run: str,
    folder: Path,
    execute: Executor = executor.execute,
    max_workers: int = 0,
    trial_ids: Sequence[str] | None = None,
) -> dict[str, str]:
    """Run a plan's trials to their ends. Success and failure are read from the store, not from Tune.

    Args:
        plan: The plan.
        store: The store of its steps.
        run: Id of this run.
        folder: Folder for Tune's own files.
        execute: Carries steps out.
        max_workers: See `capacity`.
        trial_ids: The trials that have unresolved steps, which saves Tune the time for the others; None for all.

    Returns:
        Steps that were given up without an outcome in the store, and why: mostly the store's fault.
    """
    group_size = plan.space.resources.workers
    workers = capacity(plan, max_workers)
    trial_ids = [trial.trial_id for trial in plan.trials] if trial_ids is None else trial_ids
    head = next(node["Resources"] for node in ray.nodes() if node["Alive"] and HEAD_RESOURCE in node["Resources"])
    fit_memory = int(head.get("memory", 0) // (2 * _TRIAL_BYTES))
    concurrent_trials = max(1, min(len(trial_ids), concurrency(workers // group_size), fit_memory))
    runner = Runner(plan, store, run, execute)
    dispatcher = Dispatcher.options(  # type: ignore[attr-defined]
        name=_dispatcher_name(run),
        num_cpus=0,
        resources={HEAD_RESOURCE: 0.0001},
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=2 * concurrent_trials + 3,
        runtime_env={"env_vars": _cluster_address()},
    ).remote(runner, trial_ids, workers, concurrent_trials)
    runner_reference = ray.put(runner)
    trainable = tune.with_resources(
        tune.with_parameters(_trial, runner=[runner_reference], run=run, dispatcher=dispatcher),
        tune.PlacementGroupFactory([{HEAD_RESOURCE: 0.0001, "memory": _TRIAL_BYTES}]),
    )
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search(list(trial_ids))},
        tune_config=tune.TuneConfig(max_concurrent_trials=concurrent_trials, reuse_actors=True),
        run_config=tune.RunConfig(
            name=run,
            storage_path=str(folder),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=2),
            callbacks=[_DropFailedTrials(dispatcher)],
        ),
    )
    try:
        tuner.fit()
        given_up: dict[str, str] = ray.get(dispatcher.given_up.remote())
        return given_up
    finally:
        ray.kill(dispatcher)  # also ends the steps that it still runs, if the trials were interrupted


def resolved(run: str) -> set[str]:
    """Resolved steps of a run that this driver started; empty before the dispatcher starts and after it ended.

    Args:
        run: The run's id.
    """
    try:
        step_ids: set[str] = ray.get(ray.get_actor(_dispatcher_name(run)).resolved.remote(), timeout=30)
    except (ValueError, ray.exceptions.RayError):  # there is no dispatcher, or it is restarting
        return set()
    return step_ids


def _dispatcher_name(run: str) -> str:
    return f"dispatcher {run}"


def _cluster_address() -> dict[str, str]:
    """The cluster's address as an environment variable for the processes that the dispatcher starts.

    Ray Train's placement group cleaner calls Ray's state API, which fails if it finds several clusters on one machine
    and no address. Through Ray Client the address is unknown here, and not needed.
    """
    return {} if connected_by_client() else {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


class _DropFailedTrials(tune.Callback):  # type: ignore[misc]
    """Tells the dispatcher about trials whose process died too often for Tune to restart it."""

    def __init__(self, dispatcher: Any) -> None:
        self.dispatcher = dispatcher

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self.dispatcher.drop_trial.remote(trial.config["trial"])


_runners: dict[str, Runner] = {}  # by run: Tune reuses a trial's process for others, and a plan can be large


def _trial(config: dict[str, Any], runner: list[Any], run: str, dispatcher: Any) -> None:
    """The code of one trial: carry out the driver-side steps that the dispatcher hands out."""
    trial_id: str = config["trial"]
    if run not in _runners:
        _runners[run] = ray.get(runner[0])
    result = None
    while (step_id := ray.get(dispatcher.next_driver_step.remote(trial_id, result))) is not None:
        result = attempt_step(_runners[run], step_id)
    tune.report({"trial_id": trial_id})
