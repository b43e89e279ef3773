"""The private hooks of `sacpo.compat` for Ray: each still exists in the installed Ray and is called. Starts no Ray."""

from __future__ import annotations

import asyncio
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import config as torch_config
from ray.train.v2._internal import constants as train_constants
from ray.train.v2._internal import exceptions as train_exceptions
from ray.train.v2._internal.callbacks.backend_setup import BackendSetupCallback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.execution.callback_manager import CallbackManager
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.controller.state import FinishedState, ShuttingDownState
from ray.train.v2._internal.execution.worker_group import worker_group as worker_groups
from ray.train.v2.api import data_parallel_trainer

from sacpo.cluster.trainer import own_error
from sacpo.cluster.tuner import ENVIRONMENT, LOCAL_ENVIRONMENT
from sacpo.compat import ray_core, ray_train
from sacpo.errors import StepError


class Called(Exception):
    """Raised by a stub, to prove that the library calls it."""


def task_error(cause: Exception) -> ray.exceptions.RayTaskError:
    """The error of a task or an actor's `__init__`, as Ray makes it."""
    return ray.exceptions.RayTaskError("function", "traceback", cause, proctitle="ray", pid=1, ip="127.0.0.1")


def worker_group_error(*failures: Exception) -> Exception:
    """What `fit` raises after these workers failed, as it arrives from the controller's process."""
    error: Exception = pickle.loads(pickle.dumps(ray.train.WorkerGroupError("failed", dict(enumerate(failures)))))
    return error


# ------------------------------------------------------------------------------------------------------------ Ray Core


def test_ray_still_names_the_head_and_the_timeout_of_idle_workers() -> None:
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME

    assert ray_core.HEAD_RESOURCE == HEAD_NODE_RESOURCE_NAME
    raylet = Path(ray.__file__).parent / "core" / "src" / "ray" / "raylet" / "raylet"
    assert ray_core.IDLE_WORKER_TIMEOUT_MS.removeprefix("RAY_").encode() in raylet.read_bytes()


def test_ray_still_tells_a_client_from_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_core.connected_by_client() is False
    monkeypatch.setattr(ray.util.client.ray, "is_connected", lambda: True)
    assert ray_core.connected_by_client() is True


@pytest.mark.parametrize("name", [name for name in (*ENVIRONMENT, *LOCAL_ENVIRONMENT) if name.startswith("RAY_TRAIN_")])
def test_ray_train_still_reads_the_environment_variables_that_are_set_for_it(name: str) -> None:
    assert name in vars(train_constants).values()


# ----------------------------------------------------------------------------------------------------------- Ray Train


def new_trainer(trainer_class: type[Any]) -> Any:
    """A trainer as `sacpo.cluster.trainer` makes one, with one worker."""
    return trainer_class(
        lambda: None,
        torch_config=ray_train.TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(callbacks=[ray_train.ReleasePlacementGroup()]),
    )


def fit_callbacks(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The callbacks that `fit` would give to the controller."""
    controller = Mock(return_value=SimpleNamespace(error=None))
    monkeypatch.setattr(type(trainer), "_initialize_and_run_controller", controller)
    monkeypatch.setattr(data_parallel_trainer, "ObjectRefWrapper", lambda function: function)
    trainer.fit()
    callbacks: list[Any] = controller.call_args.kwargs["callbacks"]
    return callbacks


def test_a_worker_group_has_rays_callbacks_and_ours_but_none_for_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    rays = [type(callback) for callback in fit_callbacks(new_trainer(ray.train.torch.TorchTrainer), monkeypatch)]
    ours = [type(callback) for callback in fit_callbacks(new_trainer(ray_train.TorchTrainer), monkeypatch)]
    assert rays.count(DatasetsCallback) == 1
    assert ours == [callback for callback in rays if callback is not DatasetsCallback]
    assert ray_train.ReleasePlacementGroup in ours


def test_workers_name_gloos_interface_before_their_process_group_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch_config._TorchBackend, "on_start", lambda *_: calls.append("process group"))
    callback = BackendSetupCallback(ray_train.TorchConfig(backend="gloo"))
    callback.after_worker_group_start(Mock(execute=calls.append))
    assert calls == [ray_train.set_gloo_interface, "process group"]


def test_gloo_gets_the_interface_of_the_nodes_address_unless_the_user_named_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = {"lo": "127.0.0.1", "eth7": "10.0.0.7"}
    interfaces = {name: [SimpleNamespace(address=address)] for name, address in addresses.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.0.0.7")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    ray_train.set_gloo_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth0"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    ray_train.set_gloo_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"


def start_worker_group(callback: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray's own code that starts a worker group, without workers; returns its placement group's handle."""
    handle = Mock()
    monkeypatch.setattr(ray, "get", Mock(return_value=[]))
    monkeypatch.setattr(ray, "get_runtime_context", Mock())
    monkeypatch.setattr(worker_groups, "SynchronizationActor", Mock())
    monkeypatch.setattr(
        worker_groups.WorkerGroup, "_check_cluster_resources_and_raise_if_insufficient", staticmethod(lambda *_: None)
    )
    group = worker_groups.WorkerGroup(
        train_run_context=Mock(),
        worker_group_context=worker_groups.WorkerGroupContext("run", Mock(), 0, {"CPU": 1}),
        callbacks=[callback],
    )
    monkeypatch.setattr(group, "_create_placement_group", Mock(return_value=handle))
    monkeypatch.setattr(group, "_create_workers", Mock(return_value=[]))
    monkeypatch.setattr(group, "_init_train_context", Mock())
    group._start()
    return handle


def test_a_placement_group_is_removed_although_the_shutdown_of_its_workers_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = ray_train.ReleasePlacementGroup()
    handle = start_worker_group(release, monkeypatch)
    handle.shutdown.assert_not_called()
    backend = BackendSetupCallback(ray_train.TorchConfig(backend="gloo"))
    killed = ray.exceptions.OutOfMemoryError("killed")
    monkeypatch.setattr(backend._backend, "on_shutdown", Mock(side_effect=killed))
    controller = TrainController.__new__(TrainController)
    controller._state = ShuttingDownState(next_state=FinishedState())
    controller._worker_group = Mock(shutdown=lambda: backend.before_worker_group_shutdown(Mock()))
    controller._controller_callback_manager = CallbackManager([release])
    monkeypatch.setattr(controller, "_get_run_attempt_id", lambda: "attempt")
    end = asyncio.run(controller._shutdown())
    assert end.training_failed_error.controller_failure is killed, "Ray Train itself does not expect this error"
    handle.shutdown.assert_called_once()
    asyncio.run(ray_train.ReleasePlacementGroup().before_controller_shutdown())  # no group had started


def gloo_error() -> RuntimeError:
    """The error of a collective whose other rank takes no part in it."""
    store, timeout = dist.HashStore(), timedelta(seconds=1)
    with ThreadPoolExecutor(2) as threads:
        groups = list(threads.map(lambda rank: dist.ProcessGroupGloo(store, rank, 2, timeout), range(2)))
        with pytest.raises(RuntimeError) as raised:
            groups[0].allreduce([torch.ones(4)]).wait()
    return raised.value


def test_gloo_still_raises_a_plain_error_that_only_its_text_tells_apart() -> None:
    error = gloo_error()
    assert type(error) is RuntimeError, "a type of its own would be the better criterion now"
    assert ray_train.is_worker_loss(error)
    assert own_error(worker_group_error(error)) is None


@pytest.mark.parametrize(
    "error",
    [
        train_exceptions.WorkerHealthCheckFailedError("unhealthy", ray.exceptions.ActorDiedError()),
        ray.exceptions.OutOfMemoryError("killed"),
        ray.exceptions.NodeDiedError("the node died"),
        dist.DistBackendError("NCCL error: remote process exited"),
        dist.DistNetworkError("The client socket has failed to connect"),
        dist.DistStoreError("wait timeout"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lost_worker_is_recognised_by_the_type_of_its_error(error: Exception) -> None:
    assert ray_train.is_worker_loss(pickle.loads(pickle.dumps(error)))
    assert own_error(worker_group_error(error)) is None
    assert own_error(worker_group_error(ValueError("follows from it"), error)) is None
    own = own_error(worker_group_error(error, StepError("diverged")))
    assert isinstance(own, StepError)
    assert str(own) == "diverged", "the others failed since this one did"


def test_an_error_of_the_training_code_is_final_and_an_error_of_ray_is_not() -> None:
    own = own_error(worker_group_error(ValueError("first line\nsizes differ; nccl and gloo are not to blame")))
    assert type(own) is StepError
    assert str(own) == "ValueError: sizes differ; nccl and gloo are not to blame"
    upload_failed = task_error(StepError("the disk is full"))
    assert str(own_error(upload_failed)) == "the disk is full"
    assert own_error(upload_failed.as_instanceof_cause()) is not None
    for error in (
        task_error(ValueError("in Ray's own code")),
        ray.exceptions.ActorDiedError(),
        ray.train.ControllerError(train_exceptions.WorkerGroupStartupFailedError("a node died")),
    ):
        assert own_error(error) is None
