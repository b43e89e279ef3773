"""Makes sure that steps are done, each once, whoever asks: the one loop between plan, store and executor.

Asking for a step that is done costs a look at its record. Otherwise its parents are made sure of first, then it is
claimed; whoever finds it claimed by a live holder waits, holding nothing.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from typing import Any, Protocol

from sacpo.errors import SacpoError, StepError, StoreError
from sacpo.execution.job import Job
from sacpo.planning.plan import Plan, Step
from sacpo.store.step_store import Claim, CorruptOutput, Record, Store

POLL_S = 0.2
_NO_SPACE = os.strerror(errno.ENOSPC)


class Executor(Protocol):
    """Carries a job out, somewhere, and returns its facts as a record (`Facts.as_record`)."""

    def __call__(self, kind: str, job: Job) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Runner:
    """Runs a plan's steps.

    Attributes:
        plan: The plan.
        store: Where records and outputs are.
        run: Id of this sweep run; a step that failed in it is not tried again in it.
        execute: The executor.
    """

    plan: Plan
    store: Store
    run: str
    execute: Executor

    def ensure(self, step_id: str) -> Record:
        """The record of a step, carried out now if nobody has done it.

        Raises:
            StepError: the step, or one that it needs, failed; the message is the reason and names the log.
        """
        while (record := self.attempt(step_id)) is None:
            time.sleep(POLL_S)
        return record

    def attempt(self, step_id: str) -> Record | None:
        """The same, or none at once if a live holder elsewhere is at the step."""
        step = self.plan.steps[step_id]
        while True:
            record = self.store.record(step_id)
            if record is not None:
                return record
            parents = {role: self.ensure(parent) for role, parent in step.parents.items()}
            claim = self.store.claim(step, self.run)
            if claim is None:
                failure = self.store.failure(step_id, self.run)
                if failure is not None:
                    raise StepError(f"{step.label}: {failure['error']}")
                return self.store.record(step_id)
            try:
                return claim.commit(self._carry_out(step, parents, claim))
            except CorruptOutput:
                claim.release()  # a parent's output is damaged: it is computed again, then this step
            except StoreError:
                claim.release()  # nothing is wrong with the step
                raise
            except Exception as error:
                log = self.store.latest_log(step_id)
                reason = str(error) if isinstance(error, SacpoError) else f"{type(error).__name__}: {error}"
                if _NO_SPACE in reason or self.store.full():
                    claim.release()
                    raise StoreError(f"{_NO_SPACE} for what the step writes ({reason[:300]})") from error
                claim.fail(reason, log)
            except BaseException:
                claim.release()
                raise

    def _carry_out(self, step: Step, parents: dict[str, Record], claim: Claim) -> dict[str, Any]:
        job = Job(
            step_id=step.id,
            payload=step.payload,
            folder=claim.folder,
            parents={role: self.store.place(record["step_id"], record) for role, record in parents.items()},
            needs=tuple(parents.values()),
            local=step.local,
            resources=self.plan.space.resources.model_dump(),
            logs=self.store.log_folder(step.id) / f"{claim.number:04d}",
            scratch=self.store.scratch(step.id),
            run=self.run,
            ledger=self.store.ledger,
            store=self.store,
        )
        return self.execute(step.kind, job)
