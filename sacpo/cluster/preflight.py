"""What must hold before a sweep begins: versions, store and judges on every node, memory and disk for the plan."""

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
from sacpo.cluster.tuner import HEAD
from sacpo.errors import ClusterError, StoreError
from sacpo.planning.plan import Plan
from sacpo.spaces.space import Resources
from sacpo.store import backends as storage
from sacpo.store.step_store import Store
from sacpo.versions import version

_PATIENCE_S = 300.0


@dataclass
class _Node:
    """What a node says of itself: what is wrong there, and the bytes of its largest card, if it has one."""

    problems: list[str] = field(default_factory=list)
    card: float | None = None


def check(plan: Plan, store: Store, versions: dict[str, str], done: Collection[str]) -> list[str]:
    """Ask every node that is there now; one that joins later is taken at its word.

    Args:
        plan: What is to be done.
        store: The sweep's.
        versions: Of the driver's packages, by name.
        done: Steps of the plan that are done.

    Returns:
        What may go wrong.

    Raises:
        ClusterError: names every node and what is wrong there.
        SacpoError: the plan's trainings or their files cannot fit.
        StoreError: the driver itself cannot write the store.
    """
    key, token = f".preflight-{uuid.uuid4().hex}", uuid.uuid4().bytes
    store.files.write(key, token)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    endpoints = sorted(
        {
            (step.local["base_url"] or "", step.local["api_key_env"] or "")
            for step in plan.steps.values()
            if step.payload.get("judge", {}).get("kind") == "llm" and step.id not in done
        }
    )
    try:
        asked = [
            _ask.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(store, key, token, versions, endpoints if HEAD in node["Resources"] else [])
            for node in nodes
        ]
        found = [_answer(answer) for answer in asked]
    finally:
        store.files.remove(key)
    wrong = [
        f"  {node['NodeManagerAddress']}: {problem}"
        for node, answer in zip(nodes, found, strict=True)
        for problem in answer.problems
    ]
    if wrong:
        raise ClusterError("\n".join(["the cluster cannot run this sweep as it is:", *wrong]))
    if not memory.trainings(plan, done):
        return []
    sizes = memory.shape(plan.space.model)  # brings torch for a pretrained model
    if sizes is None:
        return ["memory was not checked: the model's configuration cannot be read from here"]
    if plan.space.resources.gpus_per_worker:
        room = max((answer.card for answer in found if answer.card is not None), default=None)
        device = "the largest card"
    else:
        room, device = cpu_memory(nodes, plan.space.resources), "the largest node"
    folder = Path(store.uri) if store.cache is None else store.cache.root
    return memory.check(plan, sizes, done, room, device, folder)


def cpu_memory(nodes: Sequence[dict[str, Any]], resources: Resources) -> float | None:
    """Bytes for one worker of a group on the node that has most, if all others take what workers they can."""
    fit = [math.floor(node["Resources"].get("CPU", 0) / resources.cpus_per_worker) for node in nodes]
    rooms = [
        node["Resources"].get("memory", 0) / max(1, resources.workers - (sum(fit) - mine))
        for node, mine in zip(nodes, fit, strict=True)
        if mine
    ]
    return max(rooms, default=None)


def _answer(asked: Any) -> _Node:
    try:
        found: _Node = ray.get(asked, timeout=_PATIENCE_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[-1]
        return _Node([f"sacpo does not answer there ({reason}); install this project on the node"])
    return found


@ray.remote  # type: ignore[untyped-decorator]
def _ask(store: Store, key: str, token: bytes, versions: dict[str, str], endpoints: list[tuple[str, str]]) -> _Node:
    found = _Node()
    for name, wanted in versions.items():
        if version(name) != wanted:
            found.problems.append(
                f"{name} is {version(name)}, and {wanted} where the sweep was started; install from constraints.txt"
            )
    try:
        if store.files.read(key) != token:
            found.problems.append(
                f"the store {store.uri} is another one there; give a path that every node mounts, or an s3:// URI"
            )
        storage.check(store.files)
    except StoreError as error:
        found.problems.append(str(error))
    for base_url, api_key_env in endpoints:
        from sacpo.judges.endpoint import problem

        said = problem(base_url or None, api_key_env or None)
        found.problems += [said] if said is not None else []
    found.card = _largest_card()
    return found


def _largest_card() -> int | None:
    """Bytes of this node's largest accelerator; none where its driver's tool finds none."""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return max((int(line) * 2**20 for line in listed.stdout.split()), default=None)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
