"""The facts of a sweep: the content of `sweep.json`. Nothing in it depends on where the results folder is."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ValidationError

from sacpo.errors import SacpoError
from sacpo.planning.metrics import Stored
from sacpo.planning.plan import Plan
from sacpo.versions import commit, versions

SWEEP_FILE = "sweep.json"


class RunFacts(Stored):
    """One run of a command that carried out steps for the results folder.

    Attributes:
        run: Id of the run; records and failures in the store name it.
        command: The command line.
        address: The Ray cluster, or `in-process`.
        started_at, ended_at: Seconds since the epoch; `ended_at` is None if the process was killed or still runs.
        seconds: Duration; None like `ended_at`.
        versions: Installed versions by package.
        git_commit: Commit of this package; None if it was not run from its repository.
        steps_run: Steps that the run carried out successfully.
    """

    run: str
    command: tuple[str, ...]
    address: str
    started_at: float
    ended_at: float | None = None
    seconds: float | None = None
    versions: dict[str, str]
    git_commit: str | None
    steps_run: int = 0

    @classmethod
    def start(cls, command: Sequence[str], address: str) -> Self:
        """The facts of a run that starts now."""
        return cls(
            run=uuid.uuid4().hex,
            command=tuple(command),
            address=address,
            started_at=time.time(),
            versions=versions(),
            git_commit=commit(),
        )

    def ended(self) -> Self:
        """The facts of the run if it ends now."""
        now = time.time()
        return self.model_copy(update={"ended_at": now, "seconds": now - self.started_at})


class Counts(Stored):
    """Numbers of trials and steps when the tables were written.

    Attributes:
        steps_run: Steps whose record was written by a run of this results folder.
        steps_reused: Steps whose record was written by a run of another results folder.
    """

    trials: int = 0
    trials_done: int = 0
    trials_failed: int = 0
    steps_planned: int = 0
    steps_run: int = 0
    steps_reused: int = 0
    steps_failed: int = 0


class SweepFacts(Stored):
    """The content of `sweep.json`.

    Attributes:
        name: Name of the space.
        plan_id: Identity of the plan (`Plan.plan_id`).
        space: The resolved space.
        store: The store's path in the results folder, such as `store`; its absolute path or URI if it does not lie
            inside. `sacpo.store.results_location.ResultsLocation.resolve` makes it a URI.
        canaries: Whether judges were tried before policies were trained.
        notes: Remarks for the user.
        runs: The runs of this results folder, oldest first. A run without work adds none.
        counts: Numbers of trials and steps.
    """

    name: str
    plan_id: str
    space: dict[str, Any]
    store: str
    canaries: Literal["run", "skipped"]
    notes: tuple[str, ...] = ()
    runs: tuple[RunFacts, ...] = ()
    counts: Counts = Counts()

    @classmethod
    def of(cls, plan: Plan, store: str, before: SweepFacts | None) -> Self:
        """The facts of a plan's sweep.

        Args:
            plan: The plan.
            store: See `store`.
            before: The facts of the same sweep so far, whose runs and counts are kept.
        """
        return cls(
            name=plan.space.name,
            plan_id=plan.plan_id,
            space=plan.space.model_dump(mode="json"),
            store=store,
            canaries="run" if plan.canaries else "skipped",
            notes=plan.notes,
            runs=before.runs if before is not None else (),
            counts=before.counts if before is not None else Counts(),
        )

    @property
    def run_ids(self) -> frozenset[str]:
        """Ids of the runs of this results folder."""
        return frozenset(run.run for run in self.runs)

    @property
    def seconds(self) -> float:
        """Duration of all runs that ended."""
        return sum(run.seconds for run in self.runs if run.seconds is not None)

    def with_run(self, run: RunFacts) -> Self:
        """A copy with a further run, or with new facts of a run that is there."""
        runs = {known.run: known for known in self.runs} | {run.run: run}
        return self.model_copy(update={"runs": tuple(runs.values())})

    def without_run(self, run_id: str) -> Self:
        """A copy without a run."""
        return self.model_copy(update={"runs": tuple(run for run in self.runs if run.run != run_id)})

    def to_json(self) -> str:
        """The content of `sweep.json`."""
        return self.model_dump_json(indent=1)


def read_facts(folder: Path) -> SweepFacts:
    """The facts of a results folder.

    Raises:
        SacpoError: the folder has no `sweep.json`, or it cannot be read.
    """
    path = folder / SWEEP_FILE
    try:
        return SweepFacts.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise SacpoError(f"{folder} is not a results folder: {SWEEP_FILE} is missing") from None
    except ValidationError as error:
        raise SacpoError(
            f"{path} cannot be read ({error.error_count()} problems): it is damaged, or was written by another version "
            "of sacpo; run the sweep's own command in a new results folder with the same --store, which repeats no "
            "finished step"
        ) from None
