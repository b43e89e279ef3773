"""Private parts of Ray Train: the callbacks and the backend of a worker group, and the reason why it ended."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import psutil
import ray
import ray.train
import ray.train.torch
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from torch.distributed import DistError

from sacpo.errors import SacpoError


class TorchTrainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """Ray's TorchTrainer without the actor that shards Ray Data sets.

    Ray Train starts a `DatasetManager` actor for every worker group (https://github.com/ray-project/ray/pull/55230),
    also for a trainer without data sets. That is one more process to start in each stage, and there is no setting
    against it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]


class TorchConfig(ray.train.torch.TorchConfig):  # type: ignore[misc]
    """Ray's TorchConfig, except that gloo uses the network interface of the node's own address.

    By default gloo uses the interface that the host name resolves to, which is the loopback on many systems; workers on
    two nodes then cannot connect (https://github.com/ray-project/ray/pull/42202). The interface differs from node to
    node, so it cannot be set in a runtime environment; it must be set in each worker before the process group starts.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that prepares the workers."""
        return InterfaceBackend


class InterfaceBackend(_TorchBackend):  # type: ignore[misc]
    """Ray's torch backend, which first sets `GLOO_SOCKET_IFNAME` in every worker."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Called by Ray Train once all workers are up."""
        worker_group.execute(set_gloo_interface)
        super().on_start(worker_group, backend_config)


def set_gloo_interface() -> None:
    """Make gloo use the interface of this node's address in the Ray cluster, unless the user has set one."""
    node_address = ray.util.get_node_ip_address()
    for interface, addresses in psutil.net_if_addrs().items():
        if node_address in [address.address for address in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


class ReleasePlacementGroup(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc]
    """Removes a worker group's placement group even if the group's shutdown failed.

    Ray Train removes the placement group after it has shut down the process group on every worker, where it expects
    only RayActorError and RayTaskError. A worker that was killed for memory raises OutOfMemoryError instead, and the
    placement group then keeps all its CPUs and accelerators until the job ends: Ray Train's own cleaner
    (https://github.com/ray-project/ray/pull/58515) acts only if the controller dies. Removing a placement group twice
    does no harm.
    """

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Remember the placement group; called by the controller."""
        self._handle = worker_group.get_worker_group_state().placement_group_handle

    async def before_controller_shutdown(self) -> None:
        """Remove it; called by the controller after the worker group's shutdown."""
        if hasattr(self, "_handle"):
            self._handle.shutdown()


def training_error(error: BaseException) -> Exception | None:
    """The error that the training code raised.

    If one worker raises, collectives of the others may fail as a consequence, so an error of this package comes first.

    Args:
        error: Raised by `trainer.fit()`, or by a task that ran beside it.

    Returns:
        None if a worker, its node or the controller died.
    """
    if isinstance(error, ray.exceptions.RayTaskError):
        return error.cause if isinstance(error.cause, SacpoError) else None
    failures: Mapping[int, Exception] = (
        error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    )  # by rank
    for failure in failures.values():
        if isinstance(failure, SacpoError):
            return failure
    if any(is_worker_loss(failure) for failure in failures.values()):
        return None  # errors of the other workers are consequences
    return next(iter(failures.values()), None)


def is_worker_loss(error: Exception) -> bool:
    """Whether a worker failed because it, its node or another worker of its group died.

    Ray Train reports the death of a worker as a `RayTrainError` (private), Ray Core as a `RayError`; NCCL and the
    rendezvous store raise a `DistError`. Gloo alone raises a plain `RuntimeError` when a peer has died, which only its
    text tells from other errors: it names gloo, or the source file of gloo that noticed.
    """
    if isinstance(error, ray.exceptions.RayError | RayTrainError | DistError):
        return True
    return isinstance(error, RuntimeError) and re.search(r"\bgloo\b", str(error), re.IGNORECASE) is not None
