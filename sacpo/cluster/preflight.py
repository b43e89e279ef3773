"""What must hold on every node of a cluster before a sweep begins: the driver's versions, and the driver's store."""

from __future__ import annotations

import uuid
from importlib import metadata
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sacpo.errors import ClusterError, StoreError
from sacpo.store import Store

_PATIENCE_S = 300.0


def check(store: Store, versions: dict[str, str]) -> None:
    """Ask every node that is there now; one that joins later is taken at its word.

    Args:
        store: The sweep's.
        versions: Of the driver's packages, by name.

    Raises:
        ClusterError: names every node and what is wrong there.
        StoreError: the driver itself cannot write the store.
    """
    key, token = f".preflight-{uuid.uuid4().hex}", uuid.uuid4().bytes
    store.files.write(key, token)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    try:
        asked = [
            _problems.options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(store, key, token, versions)
            for node in nodes
        ]
        found = [_answer(answer) for answer in asked]
    finally:
        store.files.remove(key)
    wrong = [
        f"  {node['NodeManagerAddress']}: {problem}"
        for node, problems in zip(nodes, found, strict=True)
        for problem in problems
    ]
    if wrong:
        raise ClusterError("\n".join(["the cluster cannot run this sweep as it is:", *wrong]))


def _answer(asked: Any) -> list[str]:
    try:
        problems: list[str] = ray.get(asked, timeout=_PATIENCE_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        return [
            f"sacpo does not answer there ({str(error).strip().splitlines()[-1]}); install this project on the node"
        ]
    return problems


@ray.remote  # type: ignore[untyped-decorator]
def _problems(store: Store, key: str, token: bytes, versions: dict[str, str]) -> list[str]:
    found = []
    for name, version in versions.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = "not installed"
        if here != version:
            found.append(f"{name} is {here}, and {version} where the sweep was started; install from constraints.txt")
    try:
        if store.files.read(key) != token:
            found.append(
                f"the store {store.uri} is another one there; give a path that every node mounts, or an s3:// URI"
            )
        mine = f"{key}-{uuid.uuid4().hex}"
        store.files.write(mine, token)
        store.files.remove(mine)
    except StoreError as error:
        found.append(str(error))
    return found
