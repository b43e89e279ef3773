"""`sacpo sweep --dry-run`: a plan as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sacpo.planning.cost_estimate import describe_judging, describe_search
from sacpo.planning.durations import remaining_steps
from sacpo.planning.plan import Plan
from sacpo.planning.records import StepRecord
from sacpo.store.past_steps import past_steps
from sacpo.store.step_store import Store


def describe_plan(plan: Plan, store: Store) -> str:
    """Trials and steps of a plan, the steps that the store has already, the trainings to do, and the costs of judging.

    Raises:
        StoreError: the store cannot be read.
    """
    records = store.records(plan.steps)
    planned: dict[str, int] = {}
    done: dict[str, int] = {}
    for step in plan.steps.values():
        planned[step.kind] = planned.get(step.kind, 0) + 1
        done[step.kind] = done.get(step.kind, 0) + (step.id in records)
    shared, alone = plan.trainings()
    return "\n".join(
        [
            f"space {plan.space.name}: {len(plan.trials)} trials, {len(plan.steps)} steps",
            *(f"  {kind:14} {planned[kind]:4} steps, {done[kind]} in the store already" for kind in planned),
            f"trainings: {shared} with shared stages, {alone} without: sharing saves {alone - shared}",
            f"will train now: {planned.get('train', 0) - done.get('train', 0)}",
            *_describe_time(plan, store, records),
            *describe_judging(plan, records.__contains__),
            *describe_search(plan),
            *(f"note: {note}" for note in plan.notes),
            "trials:",
            *(f"  {trial.label}" for trial in plan.trials),
        ]
    )


def _describe_time(plan: Plan, store: Store, records: Mapping[str, StepRecord]) -> Iterator[str]:
    """One line on the time of the steps to do, if there are any and the store has done steps."""
    past = past_steps(store, plan)
    if past and len(records) < len(plan.steps):
        remaining = remaining_steps(plan, records, past)
        yield (
            f"time of the remaining steps: about {_minutes(remaining.work)} one after the other, at least "
            f"{_minutes(remaining.chain)} on any number of workers, from {len(past)} done steps of this store"
        )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
