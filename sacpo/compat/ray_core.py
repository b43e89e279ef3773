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


def creation_error(error: BaseException) -> BaseException | None:
    """The exception that an actor's `__init__` raised.

    `ActorDiedError.actor_init_failed` is public, but the exception itself is only in the constructor's arguments; the
    public message quotes its traceback as text.

    Returns:
        None if `error` is not an `ActorDiedError`, or if the actor died for another reason.
    """
    if not isinstance(error, ray.exceptions.ActorDiedError) or not error.actor_init_failed:
        return None
    task_error = error.args[0]
    cause = task_error.cause if isinstance(task_error, ray.exceptions.RayTaskError) else None
    return cause if isinstance(cause, BaseException) else None
