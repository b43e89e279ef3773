"""Carries a job out in the process that calls, whatever its kind; a `train` job belongs to a worker group."""

from __future__ import annotations

import importlib
import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sacpo.execution.artifacts import part
from sacpo.execution.job import ON_CPU, ON_DEVICE, Job, logged

# kind of step: (module, function). Imported where the step runs: torch stays out of processes that only wait.
STEPS = {
    "model": ("sacpo.steps.model", "run"),
    "preferences": ("sacpo.steps.data", "sample"),
    "data": ("sacpo.steps.data", "run"),
    "probabilities": ("sacpo.steps.probabilities", "run"),
    "generate": ("sacpo.steps.generate", "run"),
    "reference": ("sacpo.steps.reference", "run"),
    "judge": ("sacpo.steps.judge", "run"),
    "canary": ("sacpo.steps.judge", "canary"),
}


def in_process(kind: str, job: Job) -> dict[str, Any]:
    """Carry a job out right here."""
    alive = time.time()
    with job.staged_inputs(), logged(job.logs / f"worker-{job.shard[0]}.log"):
        module, function = STEPS[kind]
        if kind in ON_DEVICE + ON_CPU:
            import torch

            torch.set_num_threads(job.resources["cpus_per_worker"])
        facts = getattr(importlib.import_module(module), function)(job)
        facts.started_at = alive
    record: dict[str, Any] = facts.as_record()
    return record


def join(job: Job, name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Put together what the shards of a step wrote to files of this name; returns the step's record."""
    job.gather({name: digest for record in records for name, digest in record.pop("files", {}).items()})
    parts = [job.folder / part(name, (i, len(records))) for i in range(len(records))]
    pq.write_table(pa.concat_tables([pq.read_table(path) for path in parts]), job.folder / name)
    for path in parts:
        path.unlink()
    alive, ended = min(r["started_at"] for r in records), max(r["ended"] for r in records)
    return records[0] | {
        "metrics": {key: sum(r["metrics"][key] for r in records) for key in records[0]["metrics"]},
        "workers": len(records),
        "seconds": ended - alive,
        "device_seconds": sum(r["device_seconds"] for r in records),
        "started_at": alive,
        "first_update_at": min(r["first_update_at"] for r in records),
        "ended": ended,
    }
