"""An actor through which worker groups receive stages and return results."""

from __future__ import annotations

import asyncio
from typing import Any

import ray


@ray.remote(num_cpus=0)
class Mailbox:
    """Passes stages from a process that asks for them to the workers of its groups, and results back.

    Stages of a group are numbered from 0. Each worker of the group takes every one of them.
    """

    def __init__(self) -> None:
        self._posted: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self._returned: dict[tuple[str, int, int], asyncio.Future[Any]] = {}

    async def post(self, group: str, number: int, job: Any, workers: int) -> Any:
        """Give a group its next stage, or None for the end, and wait until all workers have ended the stage.

        Args:
            group: Id of the group.
            number: Number of the stage.
            job: The stage's job; None if the group shall end.
            workers: Workers of the group.

        Returns:
            What the first worker returned.
        """
        self._future(self._posted, (group, number)).set_result(job)
        if job is None:
            return None
        keys = [(group, number, rank) for rank in range(workers)]
        results = await asyncio.gather(*(self._future(self._returned, key) for key in keys))
        for key in keys:
            del self._returned[key]
        del self._posted[group, number]
        return results[0]

    async def take(self, group: str, number: int) -> Any:
        """Wait for a stage; called by every worker of the group."""
        return await self._future(self._posted, (group, number))

    async def give_back(self, group: str, number: int, rank: int, result: Any) -> None:
        """End a stage on one worker."""
        self._future(self._returned, (group, number, rank)).set_result(result)

    def _future(self, futures: dict[Any, asyncio.Future[Any]], key: Any) -> asyncio.Future[Any]:
        return futures.setdefault(key, asyncio.get_running_loop().create_future())
