"""An actor through which worker groups receive stages and return results."""

from __future__ import annotations

import asyncio
from typing import Any


class Mailbox:
    """Passes stages from a process that asks for them to the workers of its groups, and results back.

    Stages of a group are numbered from 0. Each worker of the group takes every one of them. Ray Train may start its
    workers again, after a notice or the death of the controller: they take the stage that the others had.
    """

    def __init__(self) -> None:
        self._posted: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self._ended: dict[tuple[str, int], asyncio.Future[Any]] = {}
        self._returned: dict[tuple[str, int], dict[int, Any]] = {}
        self._first: dict[str, int] = {}  # of a group's stages, the first one that has not ended

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
        stage = group, number
        self._future(self._posted, stage).set_result((job, workers))
        return None if job is None else await self._future(self._ended, stage)

    async def take(self, group: str, number: int, rank: int) -> tuple[int, Any]:
        """Wait for a stage; called by every worker of the group.

        Returns:
            The stage's number, which is a later one if that stage has ended, and its job.
        """
        stage = group, max(number, self._first.get(group, 0))
        job, _ = await self._future(self._posted, stage)
        self._returned.setdefault(stage, {}).pop(rank, None)  # of a worker that was started again
        return stage[1], job

    async def give_back(self, group: str, number: int, rank: int, result: Any) -> None:
        """End a stage on one worker."""
        stage = group, number
        if stage in self._returned:  # else the workers that were started again have ended it
            results, (_, workers) = self._returned[stage], self._posted[stage].result()
            results[rank] = result
            if len(results) == workers:
                self._first[group] = number + 1
                del self._posted[stage], self._returned[stage]
                self._ended.pop(stage).set_result(results[0])

    def _future(self, futures: dict[Any, asyncio.Future[Any]], key: Any) -> asyncio.Future[Any]:
        return futures.setdefault(key, asyncio.get_running_loop().create_future())
