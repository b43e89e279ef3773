"""The dispatcher of a sweep: an actor that decides which step runs next, by `sacpo.planning.schedule`.

The dispatcher itself starts the steps that hold worker slots and waits for each in a thread, so that one process can
have as many under way as there are slots. Trials ask it for driver-side steps (tokenising, gold values, calls to an LLM
endpoint) and carry them out in their own processes.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ray

from sacpo.cluster import worker_groups
from sacpo.cluster.executor import trains_on_group
from sacpo.cluster.metrics import SweepMetrics
from sacpo.cluster.worker_groups import RunningStep
from sacpo.errors import StepError
from sacpo.execution.runner import Runner
from sacpo.planning.metrics import JudgeMetrics
from sacpo.planning.schedule import Pool, Schedule, scheduled_steps


class StepOutcome(enum.Enum):
    """How an attempt at a step ended."""

    DONE = "its record is in the store"
    FAILED = "its failure, or that of a step that it depends on, is in the store"
    HELD_BY_OTHER = "another sweep has claimed it"
    STORE_ERROR = "no outcome could be recorded: the store is out of reach, or a disk is full"
    WORKER_LOST = "the process that carried it out died"


_RETRY_AFTER_S = {StepOutcome.HELD_BY_OTHER: 1.0, StepOutcome.STORE_ERROR: 5.0, StepOutcome.WORKER_LOST: 0.0}
_MAX_STORE_ERRORS = 24  # attempts at one step that may end with STORE_ERROR before it counts as failed


@dataclass(frozen=True)
class AttemptResult:
    """The end of an attempt at a step.

    Attributes:
        outcome: How it ended.
        reason: The error, for STORE_ERROR.
        device_seconds: Seconds x accelerators that this sweep spent on it.
        verdicts: Verdicts that this sweep obtained in it.
    """

    outcome: StepOutcome
    reason: str = ""
    device_seconds: float = 0.0
    verdicts: int = 0


def attempt_step(runner: Runner, step_id: str) -> AttemptResult:
    """Carry a step out, unless it is done or claimed. Raises no error: the result says what went wrong."""
    try:
        record = runner.attempt(step_id)
    except StepError:
        return AttemptResult(StepOutcome.FAILED)
    except Exception as error:
        logging.getLogger(__name__).exception("%s: no outcome could be recorded", step_id)
        return AttemptResult(StepOutcome.STORE_ERROR, reason=str(error) or type(error).__name__)
    if record is None:
        return AttemptResult(StepOutcome.HELD_BY_OTHER)
    if record.run != runner.run:
        return AttemptResult(StepOutcome.DONE)
    verdicts = record.metrics.verdicts if isinstance(record.metrics, JudgeMetrics) else 0
    return AttemptResult(StepOutcome.DONE, device_seconds=record.device_seconds, verdicts=verdicts)


@ray.remote
class Dispatcher:
    """Hands out a sweep's steps. Its state can be rebuilt from the store, so that Ray may restart it at any time.

    Args:
        runner: Carries steps out.
        trial_ids: The trials that will ask for steps.
        worker_slots: Worker slots of the cluster. One worker group more is handed out, so that the next step is
            prepared when capacity frees up.
        driver_steps: Driver-side steps that may run at once.
    """

    def __init__(self, runner: Runner, trial_ids: Sequence[str], worker_slots: int, driver_steps: int) -> None:
        plan = runner.plan
        self._runner = runner
        trials = [trial for trial in plan.trials if trial.trial_id in set(trial_ids)]
        self._targets = {trial.trial_id: plan.target_steps(trial) for trial in trials}
        targets = [step_id for required in self._targets.values() for step_id in required]
        done = set(runner.store.records(plan.steps))  # failures of this run are recorded again by the next attempt
        slots = worker_slots + plan.space.resources.workers
        self._schedule = Schedule(scheduled_steps(plan), targets, done, slots, driver_steps)
        self._stages = dict.fromkeys(step_id for step_id, step in plan.steps.items() if trains_on_group(step))
        self._worker_slots = worker_slots
        self._driver_steps = driver_steps
        self._step_of_trial: dict[str, str] = {}
        self._started_trials: set[str] = set()
        self._running_trials: set[str] = set()
        self._store_errors: dict[str, list[str]] = {}
        self._metrics = SweepMetrics(runner.run)
        self._changed = asyncio.Condition()
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="step")
        self._tasks: set[asyncio.Task[None]] = set()

    async def next_driver_step(self, trial_id: str, previous: AttemptResult | None) -> str | None:
        """Wait for the next driver-side step.

        A trial may exit once its own steps are resolved and the concurrency limit is reached, so that Tune reuses its
        process for the next trial. Below the limit it stays: Tune ends one process to start another if two trials exit
        at once. The last trials stay and help until all steps are resolved.

        Args:
            trial_id: The trial that asks.
            previous: The end of the step that this trial was handed before; None at its start.

        Returns:
            The step's id; None if the trial may exit.
        """
        self._started_trials.add(trial_id)
        self._running_trials.add(trial_id)
        async with self._changed:
            held = self._step_of_trial.pop(trial_id, None)
            if held is not None:  # a restarted trial does not know how its step ended
                self._end_step(held, previous or AttemptResult(StepOutcome.WORKER_LOST))
            self._start_ready_steps()
            while not self._may_exit(trial_id):
                step_id = self._schedule.pop_ready(Pool.DRIVER)
                if step_id is not None:
                    self._step_of_trial[trial_id] = step_id
                    return step_id
                await self._changed.wait()
            self._running_trials.discard(trial_id)
        return None

    def _may_exit(self, trial_id: str) -> bool:
        if self._schedule.is_finished():
            return True
        trials_wait = len(self._started_trials) < len(self._targets)
        at_limit = len(self._running_trials) >= self._driver_steps
        return trials_wait and at_limit and self._schedule.is_finished(self._targets[trial_id])

    async def drop_trial(self, trial_id: str) -> None:
        """Take a trial out that will not come back; another one gets the step that it held."""
        async with self._changed:
            self._running_trials.discard(trial_id)
            if trial_id in self._step_of_trial:
                self._end_step(self._step_of_trial.pop(trial_id), AttemptResult(StepOutcome.WORKER_LOST))
                self._start_ready_steps()

    async def resolved(self) -> set[str]:
        """The steps that are done, have failed, or depend on a failed step."""
        return self._schedule.resolved()

    async def given_up(self) -> dict[str, str]:
        """Steps that ended with too many store errors, and the last error of each."""
        return {
            step_id: reasons[-1] for step_id, reasons in self._store_errors.items() if len(reasons) >= _MAX_STORE_ERRORS
        }

    def _start_ready_steps(self) -> None:
        """Start every step that holds worker slots and may start now; wake the trials that wait for a step."""
        while (step_id := self._schedule.pop_ready(Pool.WORKERS)) is not None:
            self._spawn(self._carry_out(step_id))
        stages = self._stages
        running = [RunningStep(step, slots, step in stages) for step, slots in self._schedule.running().items()]
        # By its module: Ray copies this class, with the names that it uses, and a copy would be another object.
        worker_groups.GROUPS.follow(running, self._worker_slots, self._schedule.upcoming(stages, self._worker_slots))
        self._metrics.set_states(self._schedule.states())
        self._changed.notify_all()

    async def _carry_out(self, step_id: str) -> None:
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._threads, attempt_step, self._runner, step_id)
        async with self._changed:
            self._end_step(step_id, result)
            self._start_ready_steps()

    def _end_step(self, step_id: str, result: AttemptResult) -> None:
        self._metrics.add_step(result.device_seconds, result.verdicts)
        if result.outcome is StepOutcome.STORE_ERROR:
            self._store_errors.setdefault(step_id, []).append(result.reason)
        given_up = len(self._store_errors.get(step_id, ())) >= _MAX_STORE_ERRORS
        if given_up or result.outcome in (StepOutcome.DONE, StepOutcome.FAILED):
            self._schedule.finish(step_id, succeeded=result.outcome is StepOutcome.DONE)
        else:
            self._schedule.suspend(step_id)
            self._spawn(self._requeue(step_id, _RETRY_AFTER_S[result.outcome]))

    async def _requeue(self, step_id: str, delay: float) -> None:
        await asyncio.sleep(delay)
        async with self._changed:
            self._schedule.requeue(step_id)
            self._start_ready_steps()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run a coroutine in the background; the event loop itself keeps only a weak reference to a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
