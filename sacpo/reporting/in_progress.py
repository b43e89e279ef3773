"""The steps that are being carried out at this moment, as the claims of the store tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sacpo.planning.plan import Plan
from sacpo.planning.records import StepRecord
from sacpo.store.claim import holder
from sacpo.store.step_store import Store


@dataclass(frozen=True)
class StepInProgress:
    """A step that a live process holds.

    Attributes:
        step_id: Its id.
        label: What it does.
        kind: Its kind.
        host: The machine of the process that holds it.
        seconds: Time since it was claimed.
    """

    step_id: str
    label: str
    kind: str
    host: str
    seconds: float


def steps_in_progress(
    plan: Plan, store: Store, records: Mapping[str, StepRecord], ended: Collection[str] = ()
) -> list[StepInProgress]:
    """The steps in progress, in the order of the plan.

    Args:
        plan: The plan.
        store: The store.
        records: Records of the done steps.
        ended: Steps known to have failed.

    Raises:
        StoreError: the store cannot be read.
    """
    steps = []
    for step_id, step in plan.steps.items():
        if step_id in records or step_id in ended or not records.keys() >= set(step.parents.values()):
            continue
        if (host := holder(store, step_id)) is not None:
            age = store.files.age(f"steps/{step_id}/payload.json") or 0.0  # written when the step is claimed
            steps.append(StepInProgress(step_id, step.label, step.kind, host, max(age, 0.0)))
    return steps
