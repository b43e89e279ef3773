"""Durations of steps that any sweep of a store has done."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

from sacpo.planning.durations import TimedStep
from sacpo.planning.plan import Plan
from sacpo.store.step_store import Store

_PER_KIND = 16  # records of a kind that are read, so that a large store in a bucket answers soon


def past_steps(store: Store, plan: Plan) -> list[TimedStep]:
    """Some done steps of each kind that a plan has, whichever sweep did them.

    Raises:
        StoreError: the store cannot be read.
    """
    by_kind: dict[str, list[str]] = {step.kind: [] for step in plan.steps.values()}
    for name in store.files.list_names("steps"):
        by_kind.get(name.rpartition("-")[0], []).append(name)
    records = store.records(name for names in by_kind.values() for name in names[:_PER_KIND])
    with ThreadPoolExecutor(_PER_KIND) as pool:
        payloads = pool.map(lambda step_id: store.files.read(f"steps/{step_id}/payload.json"), records)
        return [
            TimedStep(record.kind, json.loads(content)["payload"], record.seconds)
            for record, content in zip(records.values(), payloads, strict=True)
            if content is not None
        ]
