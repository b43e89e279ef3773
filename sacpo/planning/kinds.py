"""The table of step kinds. It is the one place that says what a kind of step is; everybody else asks it.

A new kind of step is an entry here, a payload (`sacpo.planning.payloads`), metrics (`sacpo.planning.metrics`), a module
in `sacpo.steps` and a test.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sacpo.planning import metrics, payloads, records
from sacpo.planning.judge_payloads import CanaryPayload, JudgePayload, RacePayload
from sacpo.planning.metrics import Metrics
from sacpo.planning.payloads import Payload
from sacpo.planning.records import Effective, StepRecord
from sacpo.planning.served import ServedPayload
from sacpo.spaces.space import Resources


class Holds(enum.Enum):
    """Resources that a step holds while it runs."""

    NOTHING = "runs in the process that asks: a trial's, or the calling process"
    CPU_TASK = "a Ray task with the CPUs of one worker and no accelerator"
    WORKER = "a Ray task with the CPUs and the accelerator of one worker"
    WORKER_GROUP = "all workers of `resources.workers` at once"


@dataclass(frozen=True)
class StepKind:
    """Facts about one kind of step.

    Attributes:
        function: `module:name` of the function that carries it out, `(Job) -> StepReport`. It is imported where the
            step runs, so that torch stays out of processes that only wait.
        payload: Type of its payload.
        metrics: Type of its metrics.
        effective: Type of its effective settings.
        recipe: Version of the code's behaviour. It goes up when the same payload gives another output on purpose, and
            when a payload's default changes; ids change with it.
        holds: What it holds while it runs; may depend on the payload.
        cost: Rough duration relative to other kinds, for the critical path.
        shard_file: For a step that holds a worker group as separate tasks: the file of which each task writes a part.
            None for a kind that is not sharded.
        keeps_checkpoints: A restart continues from checkpoints in the store, which are deleted when the step is done.
        tolerates_failures: It is carried out without those of its parents that failed. Its parents belong to several
            trials, so they are no part of what a trial that needs it depends on.
    """

    function: str
    payload: Any
    metrics: type[Metrics]
    recipe: int
    effective: type[Effective] = Effective
    holds: Holds | Callable[[Any], Holds] = Holds.NOTHING
    cost: float = 0.2
    shard_file: str | None = None
    keeps_checkpoints: bool = False
    tolerates_failures: bool = False

    @cached_property
    def _adapter(self) -> TypeAdapter[Payload]:
        return TypeAdapter(self.payload)

    def parse(self, data: dict[str, Any]) -> Payload:
        """The payload from its JSON form.

        Raises:
            ValidationError: it is not a payload of this kind.
        """
        return self._adapter.validate_python(data)


def _judge_holds(payload: JudgePayload) -> Holds:
    return Holds.WORKER_GROUP if payload.judge.loads_model else Holds.NOTHING


def _canary_holds(payload: CanaryPayload) -> Holds:
    return Holds.WORKER if payload.judge.loads_model else Holds.NOTHING


KINDS: dict[str, StepKind] = {
    "model": StepKind(
        "sacpo.steps.model:run", payloads.ModelPayload, metrics.ModelMetrics, recipe=2, holds=Holds.CPU_TASK
    ),
    "preferences": StepKind(
        "sacpo.steps.data:sample", payloads.PreferencesPayload, metrics.PreferencesMetrics, recipe=2
    ),
    "data": StepKind("sacpo.steps.data:run", payloads.DataPayload, metrics.DataMetrics, recipe=5),
    "inspection": StepKind(
        "sacpo.steps.inspection:run",
        payloads.InspectionPayload,
        metrics.InspectionMetrics,
        recipe=2,
        holds=Holds.WORKER,
        cost=0.5,
    ),
    "reference": StepKind(
        "sacpo.steps.reference:run",
        payloads.ReferencePayload,
        metrics.ReferenceMetrics,
        recipe=1,
        holds=Holds.WORKER_GROUP,
        cost=2.0,
        shard_file="reference.parquet",
    ),
    "train": StepKind(
        "sacpo.steps.train:run_alone",
        payloads.TrainPayload,
        metrics.TrainMetrics,
        recipe=5,
        effective=records.TrainEffective,
        holds=Holds.WORKER_GROUP,
        cost=10.0,
        keeps_checkpoints=True,
    ),
    "probabilities": StepKind(
        "sacpo.steps.probabilities:run",
        payloads.ProbabilitiesPayload,
        Metrics,
        recipe=1,
        holds=Holds.WORKER,
        cost=1.0,
    ),
    "generate": StepKind(
        "sacpo.steps.generate:run",
        payloads.GeneratePayload,
        metrics.GenerateMetrics,
        recipe=5,
        effective=records.GenerateEffective,
        holds=Holds.WORKER,
        cost=2.0,
    ),
    "served": StepKind(
        "sacpo.steps.served:run",
        ServedPayload,
        metrics.GenerateMetrics,
        recipe=1,
        effective=records.ServedEffective,
        cost=1.0,
    ),
    "likelihoods": StepKind(
        "sacpo.steps.likelihoods:run",
        payloads.LikelihoodsPayload,
        metrics.ReferenceMetrics,
        recipe=1,
        holds=Holds.WORKER,
        cost=1.0,
    ),
    "judge": StepKind(
        "sacpo.steps.judge:run",
        JudgePayload,
        metrics.JudgeMetrics,
        recipe=3,
        effective=records.JudgeEffective,
        holds=_judge_holds,
        cost=1.0,
        shard_file="verdicts.parquet",
    ),
    "race": StepKind("sacpo.steps.race:run", RacePayload, metrics.RaceMetrics, recipe=1, tolerates_failures=True),
    "canary": StepKind(
        "sacpo.steps.canary:run",
        CanaryPayload,
        metrics.CanaryMetrics,
        recipe=3,
        effective=records.JudgeEffective,
        holds=_canary_holds,
    ),
}


def holds(kind: str, payload: Payload) -> Holds:
    """What a step holds while it runs."""
    rule = KINDS[kind].holds
    return rule if isinstance(rule, Holds) else rule(payload)


def read_record(content: bytes) -> StepRecord | None:
    """A record from `record.json`; None if the file is damaged (cut off by a power failure)."""
    try:
        data = json.loads(content)
        kind = KINDS[data["kind"]]
        data["metrics"] = kind.metrics.model_validate(data["metrics"])
        data["effective"] = kind.effective.model_validate(data["effective"])
        return StepRecord.model_validate(data)
    except (ValueError, KeyError, TypeError, ValidationError):
        return None


def worker_slots(kind: str, payload: Payload, resources: Resources) -> int:
    """How many workers' resources a step holds at once; 0 for a driver-side step."""
    match holds(kind, payload):
        case Holds.NOTHING:
            return 0
        case Holds.CPU_TASK | Holds.WORKER:
            return 1
        case Holds.WORKER_GROUP:
            return resources.workers
