"""The sweep's one dispatcher: an actor that says which step is next, by `sacpo.planning.schedule`.

Steps that hold workers' places it starts itself and waits for, a thread each, so that as many can be under way as there
are places, in one process. Light steps (tokenising, gold values, an LLM endpoint's calls) it hands to the trials.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import ray

from sacpo.cluster.metrics import Metrics
from sacpo.errors import StepError
from sacpo.execution.runner import Runner
from sacpo.planning.schedule import Schedule, nodes

_REST_S = {"elsewhere": 1.0, "trouble": 5.0, "lost": 0.0}  # until a step is offered again
_PATIENCE = 24  # troubles (the store cannot be reached, a disk is full) until a step counts as failed


class Outcome(NamedTuple):
    """How a step ended.

    Attributes:
        how: `done`, `failed`, `elsewhere` if another sweep is at it, `trouble` if no outcome could be kept, or `lost`
            with the process that was at it.
        why: What the trouble was.
        device_seconds: What the sweep spent on it.
        verdicts: What judges said in it.
    """

    how: str
    why: str = ""
    device_seconds: float = 0.0
    verdicts: int = 0


def attempt(runner: Runner, step: str) -> Outcome:
    """Carry a step out."""
    try:
        record = runner.attempt(step)
    except StepError:
        return Outcome("failed")
    except Exception as error:
        logging.getLogger(__name__).exception("%s: no outcome could be kept", step)
        return Outcome("trouble", why=str(error) or type(error).__name__)
    if record is None:
        return Outcome("elsewhere")
    if record["run"] != runner.run:
        return Outcome("done")
    return Outcome("done", "", record["device_seconds"], record["metrics"].get("verdicts", 0))


@ray.remote
class Dispatcher:
    """Its state is what the store says, so that it can begin anew at any time.

    Args:
        runner: Carries steps out.
        left: Ids of the trials that will ask.
        workers: Workers' places.
        light: Light steps that may be under way at once.
    """

    def __init__(self, runner: Runner, left: Sequence[str], workers: int, light: int) -> None:
        plan = runner.plan
        self._runner = runner
        asked = set(left)
        self._targets = {trial.trial_id: plan.required_steps(trial) for trial in plan.trials if trial.trial_id in asked}
        done = set(runner.store.records(plan.steps))  # of what failed in this run, the next attempt says so at once
        wanted = [step for steps in self._targets.values() for step in steps]
        self._schedule = Schedule(nodes(plan), wanted, done, workers, light)
        self._held: dict[str, str] = {}  # by trial
        self._light = light
        self._started: set[str] = set()
        self._present: set[str] = set()
        self._troubles: dict[str, list[str]] = {}
        self._metrics = Metrics(runner.run)
        self._news = asyncio.Condition()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="step")
        self._tasks: set[asyncio.Task[None]] = set()

    async def take(self, trial: str, ended: Outcome | None) -> str | None:
        """The next light step for a trial, once there is one; none when the trial may leave.

        It may when its own steps are resolved and as many trials are there as may be: Tune hands its process to the next
        one, but of two that leave at once it ends one process to start another. The last trials stay and help until all
        is resolved.

        Args:
            trial: The trial's id.
            ended: How the step ended that it was handed before; none at its beginning.
        """
        self._started.add(trial)
        self._present.add(trial)
        async with self._news:
            step = self._held.pop(trial, None)
            if step is not None:
                self._end(step, ended or Outcome("lost"))
            self._go_on()
            while not self._may_leave(trial):
                step = self._schedule.take(holds=False)
                if step is not None:
                    self._held[trial] = step
                    return step
                await self._news.wait()
            self._present.discard(trial)
        return None

    def _may_leave(self, trial: str) -> bool:
        if self._schedule.over():
            return True
        followed = len(self._present) >= self._light and len(self._started) < len(self._targets)
        return followed and self._schedule.over(self._targets[trial])

    async def lost(self, trial: str) -> None:
        """The trial is gone for good; others go on with what it held."""
        async with self._news:
            self._present.discard(trial)
            if trial in self._held:
                self._end(self._held.pop(trial), Outcome("lost"))
                self._go_on()

    async def resolved(self) -> set[str]:
        """The steps of which the store says how they ended; and those that need one that failed."""
        return self._schedule.resolved()

    async def given_up(self) -> dict[str, str]:
        """Steps of which no outcome could be kept, again and again, and why the last time."""
        return {step: said[-1] for step, said in self._troubles.items() if len(said) >= _PATIENCE}

    def _go_on(self) -> None:
        """Start all steps that hold workers' places and may start now; those who wait for a light one look again."""
        while (step := self._schedule.take(holds=True)) is not None:
            self._keep(self._carry_out(step))
        self._metrics.states(self._schedule.states())
        self._news.notify_all()

    async def _carry_out(self, step: str) -> None:
        outcome = await asyncio.get_running_loop().run_in_executor(self._pool, attempt, self._runner, step)
        async with self._news:
            self._end(step, outcome)
            self._go_on()

    def _end(self, step: str, outcome: Outcome) -> None:
        self._metrics.spent(outcome.device_seconds, outcome.verdicts)
        if outcome.how == "trouble":
            self._troubles.setdefault(step, []).append(outcome.why)
        if outcome.how in ("done", "failed") or len(self._troubles.get(step, ())) >= _PATIENCE:
            self._schedule.finish(step, well=outcome.how == "done")
        else:
            self._schedule.rest(step)
            self._keep(self._offer(step, _REST_S[outcome.how]))

    async def _offer(self, step: str, after: float) -> None:
        await asyncio.sleep(after)
        async with self._news:
            self._schedule.offer(step)
            self._go_on()

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        """Run beside; the loop itself keeps no reference to its tasks."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
