"""Checks before a sweep starts: versions, store and judges on every node; memory and disk space for the plan."""

from __future__ import annotations

import math
import subprocess
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sacpo.cluster import memory
from sacpo.compat.ray_core import HEAD_RESOURCE
from sacpo.errors import ClusterError, StoreError, last_line
from sacpo.execution.processor import number_format_note
from sacpo.planning.plan import Plan
from sacpo.planning.served import endpoint_of
from sacpo.spaces.model_loading import Loading
from sacpo.spaces.space import Resources, Space
from sacpo.store import backends
from sacpo.store.step_store import Store
from sacpo.versions import version

_NODE_TIMEOUT_S = 300.0


@dataclass
class NodeReport:
    """What a node reports about itself.

    Attributes:
        problems: Reasons why the sweep cannot run there.
        notes: What the sweep does slowly there.
        accelerator_bytes: Memory of its largest accelerator; None if it has none.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accelerator_bytes: float | None = None


def check_cluster(plan: Plan, store: Store, versions: dict[str, str], done: Collection[str]) -> list[str]:
    """Check every node of the cluster. Nodes that join later are not checked.

    Args:
        plan: The plan.
        store: The sweep's store.
        versions: Versions of the driver's packages, by name.
        done: Steps of the plan that are done.

    Returns:
        Notes about problems that may arise.

    Raises:
        ClusterError: names every node that has a problem, with its problems.
        SacpoError: the plan's training steps or their files cannot fit.
        StoreError: this process cannot write to the store.
    """
    key, token = f".preflight-{uuid.uuid4().hex}", uuid.uuid4().bytes
    store.files.write(key, token)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    try:
        pending = [
            _examine_node.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(
                store,
                key,
                token,
                versions,
                # Driver-side steps, which call the endpoints, run on the head.
                _endpoints(plan, done) if HEAD_RESOURCE in node["Resources"] else [],
                plan.space if _can_train(node, plan.space.resources) else None,
            )
            for node in nodes
        ]
        reports = [_report(reference) for reference in pending]
    finally:
        store.files.remove(key)
    problems = [
        f"  {node['NodeManagerAddress']}: {problem}"
        for node, report in zip(nodes, reports, strict=True)
        for problem in report.problems
    ]
    if problems:
        raise ClusterError("\n".join(["the cluster cannot run this sweep:", *problems]))
    notes = list(dict.fromkeys(note for report in reports for note in report.notes))
    if not memory.remaining_trainings(plan, done):
        return notes
    size = memory.model_size(plan.space.model)  # imports torch for a pretrained model
    if size is None:
        return [*notes, "memory was not checked: the model's configuration cannot be read from this machine"]
    if plan.space.resources.gpus_per_worker:
        memory.check_offload_fits(plan, size, done, cpu_memory(nodes, plan.space.resources))
        accelerators = [report.accelerator_bytes for report in reports if report.accelerator_bytes is not None]
        available, device = max(accelerators, default=None), "the largest accelerator"
    else:
        available, device = cpu_memory(nodes, plan.space.resources), "the largest node"
    folder = Path(store.uri) if store.cache is None else store.cache.root
    return [*notes, *memory.check_fits(plan, size, done, available, device, folder)]


def _endpoints(plan: Plan, done: Collection[str]) -> list[tuple[str | None, str | None]]:
    """(base URL, environment variable of the key) of each endpoint that remaining steps call."""
    called = (endpoint_of(step.payload) for step in plan.steps.values() if step.id not in done)
    return list(dict.fromkeys((owner.base_url, owner.api_key_env) for owner in called if owner is not None))


def _can_train(node: dict[str, Any], resources: Resources) -> bool:
    """Whether a node has the CPUs and the GPU of a worker."""
    has, needed = node["Resources"], {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return all(has.get(name, 0) >= number for name, number in needed.items())


def cpu_memory(nodes: Sequence[dict[str, Any]], resources: Resources) -> float | None:
    """Bytes that one worker of a group can have, on the node that gives most, if the other nodes take what they can.

    Returns:
        None if no node has the CPUs of a worker.
    """
    capacities = [math.floor(node["Resources"].get("CPU", 0) / resources.cpus_per_worker) for node in nodes]
    shares = [
        node["Resources"].get("memory", 0) / max(1, resources.workers - (sum(capacities) - capacity))
        for node, capacity in zip(nodes, capacities, strict=True)
        if capacity
    ]
    return max(shares, default=None)


def _report(reference: Any) -> NodeReport:
    """Wait for a node's report; a node that does not answer has that as its problem."""
    try:
        report: NodeReport = ray.get(reference, timeout=_NODE_TIMEOUT_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        reason = last_line(error)
        return NodeReport([f"sacpo cannot be run there ({reason}); install this project on the node"])
    return report


@ray.remote  # type: ignore[untyped-decorator]
def _examine_node(
    store: Store,
    key: str,
    token: bytes,
    versions: dict[str, str],
    endpoints: list[tuple[str | None, str | None]],
    space: Space | None,
) -> NodeReport:
    """Examine the node on which this runs; the space is None where no worker fits."""
    report = NodeReport()
    for name, expected in versions.items():
        installed = version(name)
        if installed != expected:
            report.problems.append(
                f"{name} is {installed}, but {expected} where the sweep was started; install from constraints.txt"
            )
    try:
        if store.files.read(key) != token:
            report.problems.append(
                f"the store {store.uri} is another one there; give a path that every node mounts, or a bucket's URI"
            )
        backends.check_writable(store.files)
    except StoreError as error:
        report.problems.append(str(error))
    for base_url, api_key_env in endpoints:
        from sacpo.judges.chat_client import problem

        endpoint_problem = problem(base_url, api_key_env)
        if endpoint_problem is not None:
            report.problems.append(endpoint_problem)
    if space is not None and space.model.loading != Loading():
        from sacpo.steps.model_loading import missing_support  # imports torch

        report.problems += missing_support(space.model.loading)
    if space is not None and (note := number_format_note(space)):
        report.notes.append(note)
    report.accelerator_bytes = _largest_accelerator()
    return report


def _largest_accelerator() -> int | None:
    """Memory in bytes of this node's largest accelerator; None if nvidia-smi is not there or lists none."""
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return max((int(line) * 2**20 for line in listing.stdout.split()), default=None)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
