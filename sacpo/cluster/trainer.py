"""Training steps on Ray Train: a worker group under DeepSpeed ZeRO-3 that survives the death of its workers.

NCCL where there are accelerators, gloo where there are none. Ray Train keeps the run in the step's scratch folder under
a fixed name, so a second `fit` of the same step, by whomever, goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.train
import ray.train.torch
import ray.util.scheduling_strategies
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError, RayTrainError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

from sacpo.cluster.workdir import workdir
from sacpo.errors import SacpoError, StepError, StoreError
from sacpo.execution.job import Facts, Job, worker_resources

# A worker group waits for its placement group this long, while others train, before Ray Train looks again.
_START_TIMEOUT_S = "1800"
_NOTICE_S = 5.0  # between two questions whether a machine is about to go; Ray Train itself looks as often
_SIZES = "sizes-"  # a worker's note, in a checkpoint, of the files that it wrote there


def train(job: Job) -> dict[str, Any]:
    """Run a `train` step on its own worker group and wait for it.

    A dead worker restarts the group from the last checkpoint, `resources.max_restarts` times, or from the stage's
    beginning where that checkpoint is damaged; an error that the training itself raised is final.

    Raises:
        StepError: training failed; the message is its reason.
        DamagedCheckpoint: it was, and the group may not be restarted again.
    """
    resources = job.resources
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", _START_TIMEOUT_S)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    for attempt in range(resources["max_restarts"] + 1):
        trainer = _Trainer(
            _worker,
            train_loop_config={"job": job},
            torch_config=_TorchConfig(backend="nccl" if resources["gpus_per_worker"] else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=resources["workers"],
                use_gpu=resources["gpus_per_worker"] > 0,
                resources_per_worker=worker_resources(resources),
            ),
            run_config=RunConfig(
                # ZeRO-3 cannot resume with another number of workers: another group starts from the stage's beginning.
                name=f"{resources['sharding']}-{resources['workers']}",
                storage_path=job.scratch,
                storage_filesystem=job.store.filesystem(),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=resources["max_restarts"]),
                callbacks=[ReleasePlacementGroup()],
            ),
        )
        try:
            outcome: dict[str, Any] = trainer.fit().return_value
            node = outcome.pop("node")
            return outcome if job.store.cache is None else outcome | {"files": _keep(job, node)}
        except Exception as error:
            raised = _own_error(error)
            last = attempt == resources["max_restarts"]
            if isinstance(raised, DamagedCheckpoint):
                job.store.drop_scratch(job.step_id)
            if raised is not None and (last or not isinstance(raised, DamagedCheckpoint)):
                raise raised from error
            if last:
                raise StepError(f"the workers died {attempt + 1} times: {_last_line(error)}") from error
            logging.getLogger(__name__).warning("%s: restarting after %s", job.step_id, _last_line(error))
    raise AssertionError("unreachable: the last attempt returns or raises")


class DamagedCheckpoint(StoreError):
    """What a stage was to go on from is not what was written."""


class _Trainer(ray.train.torch.TorchTrainer):  # type: ignore[misc]
    """Ray's, without the actor that hands Ray Data sets out: there are none, and it takes a process each stage."""

    def _create_default_callbacks(self) -> list[Any]:
        return [found for found in super()._create_default_callbacks() if not isinstance(found, DatasetsCallback)]


class _TorchConfig(ray.train.torch.TorchConfig):  # type: ignore[misc]
    """Ray's, but gloo speaks over the interface of the node's own address.

    By itself it takes what the host's name resolves to, which on many systems is the loopback.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: _TorchConfig) -> None:
        worker_group.execute(_name_interface)
        super().on_start(worker_group, backend_config)


def _name_interface() -> None:
    mine = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if mine in [found.address for found in addresses]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class ReleasePlacementGroup(WorkerGroupCallback, ControllerCallback):  # type: ignore[misc]
    """Gives a worker group's placement group back however its shutdown went.

    Ray Train shuts the process group down on every worker first; where a worker was killed for memory, that raises, and
    the placement group, with all its CPUs and accelerators, would stay until the job ends.
    """

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._handle = worker_group.get_worker_group_state().placement_group_handle

    async def before_controller_shutdown(self) -> None:
        if hasattr(self, "_handle"):
            self._handle.shutdown()


def _keep(job: Job, node: str) -> dict[str, str]:
    """Send the output to the store from the node that wrote it; its accelerators are others' again meanwhile."""
    there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    sent = ray.remote(Job.keep).options(num_cpus=0, scheduling_strategy=there, name=f"{job.step_id} upload").remote(job)
    digests: dict[str, str] = ray.get(sent)
    return digests


def _own_error(error: BaseException) -> SacpoError | None:
    """The error that the training code raised; none if a worker, its node or its controller died.

    Ray has exceptions of its own for workers that went away. When one worker raises, others may fail for that reason (a
    broken collective), so an error of this package speaks first.
    """
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, SacpoError):
        return error.cause
    if CheckpointManagerInitializationError.__name__ in str(error):  # raised where a controller starts: Ray quotes it
        return DamagedCheckpoint(f"the controller's list of checkpoints is damaged: {_last_line(error)}")
    failures: list[Exception] = list(getattr(error, "worker_failures", {}).values())
    ours = [f for f in failures if isinstance(f, SacpoError)]
    if ours:
        return ours[0]
    if not failures or any(_is_loss(f) for f in failures):
        return None  # somebody died; what the others raised follows from it
    return StepError(f"{type(failures[0]).__name__}: {_last_line(failures[0])}")


def _is_loss(error: Exception) -> bool:
    """Whether a worker or its peer went away; a collective may say so before Ray does."""
    ray_says = isinstance(error, ray.exceptions.RayError | RayTrainError)
    return ray_says or re.search(r"\bgloo\b|\bnccl\b", str(error), re.IGNORECASE) is not None


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else type(error).__name__


# ------------------------------------------------------------------------------------------------- inside the workers


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """One worker's whole life: set up the process group's users, train, hand rank 0's facts back."""
    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # A worker process may be an idle one that Ray had: then it is this step's only since the job was made.
    facts = Facts(started_at=max(_process_start(), job.created), workers=world, devices=world)
    facts.ready("process")
    _log_to(job.logs / f"worker-{rank}.log")
    from sacpo.steps import train as stage

    stage.quiet()
    facts.ready("imports")
    with workdir(f"{job.step_id}-{rank}") as folder:
        checkpoint, resumed = ray.train.get_checkpoint(), None
        if checkpoint is not None:
            print(f"goes on from {checkpoint.path}", flush=True)
            resumed = folder / "resumed"
            checkpoint.to_directory(str(resumed))
            _check_sizes(resumed)
        sharding = _deepspeed(job) if job.resources["sharding"] == "zero3" else None
        facts.ready("group")
        placement = stage.WorkerContext(world, rank, sharding, resumed, report_checkpoint, folder, PreemptionWatcher())
        with job.staged_inputs():
            result = stage.run(job, placement, facts)
        result.ended = time.time()
        return result.as_record() | {"node": ray.get_runtime_context().get_node_id()}


def _deepspeed(job: Job) -> dict[str, Any]:
    """Attach DeepSpeed to the process group that Ray made; the configuration of ZeRO-3."""
    if not job.resources["gpus_per_worker"]:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed builds its CPU communication with ninja, which is installed beside this Python, on the PATH or not.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    import deepspeed

    if not job.resources["gpus_per_worker"]:
        load_operator()
    backend = "nccl" if job.resources["gpus_per_worker"] else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
    return {
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True},
        "bf16": {"enabled": job.payload["dtype"] == "bfloat16"},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }


def load_operator() -> None:
    """Build or load DeepSpeed's operator for communication on CPUs, one process at a time.

    torch guards the build by a file that a killed process leaves behind, and then waits for that file for ever. Our own
    lock dies with its holder; who has it takes a guard away that no process holds open.
    """
    from deepspeed.comm.torch import build_shm_op

    guard = operator_folder() / "lock"
    with guard.with_name("sacpo.lock").open("w") as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        if guard.exists() and not _held_open(guard):
            guard.unlink(missing_ok=True)
        build_shm_op()


def operator_folder() -> Path:
    """Where the operator is built: each environment's own, as two that share one would build anew after each other."""
    from torch.utils.cpp_extension import _get_build_directory, get_default_build_root

    environment = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", f"{get_default_build_root()}/sacpo-{environment}")
    return Path(_get_build_directory("deepspeed_shm_comm", False))


def _held_open(path: Path) -> bool:
    """Whether a process has the file open, as far as this system tells."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(path.resolve()):
                return True
    return not Path("/proc/self/fd").exists()


def report_checkpoint(folder: Path, update: int) -> None:
    """Report a checkpoint: every worker uploads its own part, and all wait until every part is written."""
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    (folder / f"{_SIZES}{ray.train.get_context().get_world_rank()}.json").write_text(json.dumps(sizes))
    ray.train.report({"update": update}, checkpoint=ray.train.Checkpoint.from_directory(str(folder)))


class PreemptionWatcher:
    """Whether the group was just told that it loses a machine: true once, on all workers after the same update.

    Ray Train makes sure of that by a call to an actor, so it is asked every few seconds only: how many updates these
    are, rank 0 says each time, from those since the last.
    """

    def __init__(self) -> None:
        self._asked = time.monotonic()
        self._updates, self._every = 0, 1
        self._told = False

    def __call__(self) -> bool:
        self._updates += 1
        if self._told or self._updates < self._every:
            return False
        now = time.monotonic()
        self._every = broadcast_from_rank_zero(max(1, int(self._updates * _NOTICE_S / (now - self._asked))))
        self._updates, self._asked = 0, now
        self._told = ray.train.get_preemption_info() is not None
        return self._told


def _check_sizes(folder: Path) -> None:
    """Raises DamagedCheckpoint unless every worker's part has all its files in full length."""
    parts = list(folder.glob(f"{_SIZES}*.json"))
    try:
        sizes = {name: size for part in parts for name, size in json.loads(part.read_text()).items()}
    except ValueError as error:
        raise DamagedCheckpoint(f"the checkpoint is damaged: {error}") from error
    for name, size in sizes.items():
        found = (folder / name).stat().st_size if (folder / name).exists() else "no"
        if found != size:
            raise DamagedCheckpoint(f"the checkpoint is damaged: {name} has {found} bytes of {size}")
    if len(parts) != ray.train.get_context().get_world_size():
        raise DamagedCheckpoint("the checkpoint is damaged: a worker's part is missing")


def _log_to(path: Path) -> None:
    """Send this worker's output to a file that errors can name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _process_start() -> float:
    """When this process started, in seconds since the epoch; now where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return time.time()
    return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))
