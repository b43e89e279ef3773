"""Durations of steps that any sweep of a store has done."""

from __future__ import annotations

import json
from collections.abc import Iterable

from sacpo.planning.durations import TimedStep
from sacpo.store.step_store import Store

_PER_KIND = 16  # records of a kind that are read, so that a large store in a bucket answers soon


def past_steps(store: Store, kinds: Iterable[str]) -> list[TimedStep]:
    """Some done steps of each kind, whichever sweep did them.

    Args:
        store: The store.
        kinds: The kinds.

    Raises:
        StoreError: the store cannot be read.
    """
    names = store.files.list_names("steps")
    chosen = [name for kind in kinds for name in [n for n in names if n.rpartition("-")[0] == kind][:_PER_KIND]]
    steps = []
    for step_id, record in store.records(chosen).items():
        content = store.files.read(f"steps/{step_id}/payload.json")
        if content is not None:
            steps.append(TimedStep(record.kind, json.loads(content)["payload"], record.seconds))
    return steps
