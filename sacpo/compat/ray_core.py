"""Private parts of Ray Core."""

from __future__ import annotations

import ray

HEAD_RESOURCE = "node:__internal_head__"
"""Resource that exactly one node of every cluster has: the head.

Ray names it in `ray._common.constants`. Ray's own detached actors are pinned to the head with it
(https://github.com/ray-project/ray/pull/64705); there is no public way.
"""

IDLE_WORKER_TIMEOUT_MS = "RAY_idle_worker_killing_time_threshold_ms"
"""Environment variable for the milliseconds after which Ray ends an idle worker process.

It is a configuration value of the raylet, which Ray does not document. With a long time, the processes of one stage are
still there for the next one, which then need not import torch and TRL again.
"""


def connected_by_client() -> bool:
    """Whether this process is connected through Ray Client (`ray://`), where the runtime context has no GCS address.

    `ray.util.client.ray` is not documented, although many parts of Ray ask it.
    """
    return bool(ray.util.client.ray.is_connected())
