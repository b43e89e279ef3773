"""One step's row of the step table."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sacpo.results.stored_outputs import StoredOutputs

_NAN = float("nan")


def step_row(step_id: str, outputs: StoredOutputs, run_ids: Collection[str]) -> dict[str, Any]:
    """The step's row.

    Args:
        step_id: The step.
        outputs: Records of the plan's steps.
        run_ids: The runs of the results folder. A step that another run carried out is reused.
    """
    step, record = outputs.plan.steps[step_id], outputs.record(step_id)
    row = {
        "step_id": step_id,
        "kind": step.kind,
        "label": step.label,
        "parents": json.dumps(step.parents),
        "config": step.payload.model_dump_json(),
    }
    if record is None:
        attempts, failure = outputs.attempts(step_id)
        return row | {
            "status": "failed" if failure is not None else "pending",
            "error": failure.error if failure is not None else "",
            "attempts": attempts,
            "reused": False,
            "seconds": _NAN,
            "device_seconds": _NAN,
            "workers": 0,
            "effective": "{}",
            "metrics": "{}",
            "retracted": _retractions(step_id, outputs) if attempts else "[]",
            "started_at": _NAN,
            "first_update_at": _NAN,
            "ended_at": _NAN,
        }
    return row | {
        "status": "done",
        "error": "",
        "attempts": record.attempts,
        "reused": record.run not in run_ids,
        "seconds": record.seconds,
        "device_seconds": record.device_seconds,
        "workers": record.workers,
        "effective": record.effective.model_dump_json(),
        "metrics": record.metrics.model_dump_json(),
        "retracted": _retractions(step_id, outputs) if record.attempts > 1 else "[]",
        "started_at": record.started_at,
        "first_update_at": record.first_update_at,
        "ended_at": record.ended_at,
    }


def _retractions(step_id: str, outputs: StoredOutputs) -> str:
    return json.dumps(outputs.store.retractions(step_id))
