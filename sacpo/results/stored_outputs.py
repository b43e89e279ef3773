"""The records and outputs of a plan's steps in a store, each read once, for one building of the tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from sacpo.execution.artifacts import read_probabilities
from sacpo.planning.kinds import KINDS
from sacpo.planning.plan import Plan
from sacpo.planning.records import Failure, StepRecord
from sacpo.store.step_store import CorruptOutput, Store
from sacpo.synthetic.world import Array


class StoredOutputs:
    """Records, attempts and verified outputs of a plan's steps.

    Args:
        plan: The plan.
        store: The store.
        records: The records of the steps that are done.
        failures_of: Runs whose failures count; a step that failed in another run only is pending.
    """

    def __init__(
        self, plan: Plan, store: Store, records: Mapping[str, StepRecord], failures_of: Collection[str]
    ) -> None:
        self.plan, self.store = plan, store
        self._failures_of = failures_of
        self._attempts: dict[str, tuple[int, Failure | None]] = {}
        self._records = dict(records)
        baseline = plan.baseline.probabilities
        self.sft_probabilities = self.probabilities(baseline) if baseline is not None else None

    def record(self, step_id: str) -> StepRecord | None:
        """The step's record; None if it is not done, or its output was read and is damaged."""
        return self._records.get(step_id)

    def table(self, step_id: str, name: str) -> pd.DataFrame:
        """A Parquet file of the step's output; empty if there is no undamaged output."""
        folder = self._output(step_id)
        return pd.DataFrame() if folder is None else pd.read_parquet(folder / name)

    def file(self, step_id: str, name: str) -> bytes | None:
        """One small file of the step's output; None if there is no undamaged one. Other files are not fetched."""
        record = self.record(step_id)
        return None if record is None else self.store.output_file(record, name)

    def probabilities(self, step_id: str) -> Array | None:
        """The exact probabilities that a `probabilities` step wrote, of shape (prompts, answers)."""
        folder = self._output(step_id)
        return None if folder is None else read_probabilities(folder)

    def attempts(self, step_id: str) -> tuple[int, Failure | None]:
        """The number of attempts at a step that is not done, and the latest attempt's failure."""
        step = self.plan.steps[step_id]
        needs_parents = not KINDS[step.kind].tolerates_failures
        if needs_parents and any(self.record(parent) is None for parent in step.parents.values()):
            return 0, None  # a step is only tried when its parents are done
        if step_id not in self._attempts:
            number, failure = self.store.attempt_summary(step_id)
            counts = failure is not None and failure.run in self._failures_of
            self._attempts[step_id] = number, failure if counts else None
        return self._attempts[step_id]

    def _output(self, step_id: str) -> Any:
        record = self.record(step_id)
        if record is None:
            return None
        try:
            return self.store.verified_output_dir(step_id, record)
        except CorruptOutput:
            del self._records[step_id]
            return None
