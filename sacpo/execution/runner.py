"""Makes sure that steps are done, each exactly once for all callers: the loop between plan, store and executor.

`sacpo.planning.schedule` decides which step is ready; a runner then claims it and has it carried out. If a parent's
output turns out to be damaged, or a parent was retracted meanwhile, the runner computes that parent again first. A
caller that finds a step claimed by a live process waits and holds nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass
from typing import Any, Protocol

from sacpo.errors import SacpoError, StepError, StoreError
from sacpo.execution.job import Job
from sacpo.planning.kinds import KINDS
from sacpo.planning.plan import Plan, Step
from sacpo.planning.records import StepRecord, StepResult
from sacpo.store.claim import Claim
from sacpo.store.step_store import CorruptOutput, Store

POLL_S = 0.2
_DISK_FULL = os.strerror(errno.ENOSPC)


class Executor(Protocol):
    """Carries a job out, in whichever process, and returns its result.

    Raises:
        StepError: the step failed; the message is the reason.
    """

    def __call__(self, job: Job[Any]) -> StepResult: ...


@dataclass(frozen=True)
class Runner:
    """Runs a plan's steps.

    Attributes:
        plan: The plan.
        store: The store of records and outputs.
        run: Id of this sweep run. A step that failed in a run is not tried again in it.
        execute: The executor.
    """

    plan: Plan
    store: Store
    run: str
    execute: Executor

    def ensure(self, step_id: str) -> StepRecord:
        """The record of a step; the step is carried out now if it is not done.

        Raises:
            StepError: the step, or a step that it depends on, failed; the message is the reason.
            StoreError: the store cannot be used.
        """
        while (record := self.attempt(step_id)) is None:
            time.sleep(POLL_S)
        return record

    def attempt(self, step_id: str) -> StepRecord | None:
        """The same, but None at once if a live process elsewhere holds the step."""
        step = self.plan.steps[step_id]
        while True:
            record = self.store.record(step_id)
            if record is not None:
                return record
            parents = self._parents(step)
            claim = self.store.claim(step, self.run)
            if claim is None:
                failure = self.store.failure(step_id, self.run)
                if failure is not None:
                    raise StepError(f"{step.label}: {failure.error}")
                return self.store.record(step_id)
            try:
                return claim.commit(self.execute(self._job(step, parents, claim)))
            except CorruptOutput:
                claim.release()  # a parent's output is damaged: it is computed again, then this step
            except StoreError:
                claim.release()  # nothing is wrong with the step
                raise
            except Exception as error:
                log = self.store.latest_log(step_id)
                reason = str(error) if isinstance(error, SacpoError) else f"{type(error).__name__}: {error}"
                if self._is_disk_full(error, reason):
                    claim.release()
                    raise StoreError(f"{_DISK_FULL} for what the step writes ({reason[:300]})") from error
                claim.fail(reason, log)
            except BaseException:
                claim.release()
                raise

    def _parents(self, step: Step) -> dict[str, StepRecord]:
        """The records of the step's parents, without those that failed if its kind tolerates that."""
        if not KINDS[step.kind].tolerates_failures:
            return {role: self.ensure(parent) for role, parent in step.parents.items()}
        records = {}
        for role, parent in step.parents.items():
            with contextlib.suppress(StepError):
                if not self._failed(parent):
                    records[role] = self.ensure(parent)
        return records

    def _failed(self, step_id: str) -> bool:
        """Whether a step, or one that it cannot do without, failed in this run. Each step is looked at once, unlike by
        `ensure`, which would follow every path between the steps of failed races."""
        seen: set[str] = set()
        open_steps = [step_id]
        while open_steps:
            current = open_steps.pop()
            if current in seen or self.store.record(current) is not None:
                continue
            seen.add(current)
            if self.store.failure(current, self.run) is not None:
                return True
            step = self.plan.steps[current]
            open_steps += [] if KINDS[step.kind].tolerates_failures else step.parents.values()
        return False

    def _is_disk_full(self, error: Exception, reason: str) -> bool:
        """Whether a step failed for want of disk space. Libraries wrap the system's error in types of their own, and
        then only its text is left."""
        is_system_error = isinstance(error, OSError) and error.errno == errno.ENOSPC
        return is_system_error or _DISK_FULL in reason or self.store.disk_full()

    def _job(self, step: Step, parents: dict[str, StepRecord], claim: Claim) -> Job[Any]:
        prompt_set = step.payload.prompt_set
        return Job(
            step=step,
            folder=claim.folder,
            parents={role: self.store.expected_output_dir(record) for role, record in parents.items()},
            parent_records=tuple(parents.values()),
            prompts=() if prompt_set is None else self.plan.prompt_sets[prompt_set],
            resources=self.plan.space.resources,
            logs=self.store.log_dir(step.id) / f"{claim.number:04d}",
            run=self.run,
            store=self.store,
        )
