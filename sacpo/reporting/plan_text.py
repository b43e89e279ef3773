"""`sacpo sweep --dry-run`: a plan as text."""

from __future__ import annotations

from sacpo.planning.cost_estimate import describe_judging, describe_search
from sacpo.planning.plan import Plan
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
            *describe_judging(plan, records.__contains__),
            *describe_search(plan),
            *(f"note: {note}" for note in plan.notes),
            "trials:",
            *(f"  {trial.label}" for trial in plan.trials),
        ]
    )
