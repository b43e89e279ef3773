"""Records: the facts about a finished step, as frozen models. The store keeps one for every step that is done.

`metrics` (see `sacpo.planning.metrics`) and `effective` have one model for each kind of step. A field that is added
later needs a default, so that records of older versions stay readable; fields of newer versions are ignored.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializeAsAny

from sacpo.planning.metrics import Metrics, Stored
from sacpo.spaces.evaluation import Generation


class Effective(Stored):
    """Settings read back from the objects that did the work; kinds that have some extend it."""


class TrainEffective(Effective):
    """Settings as the built trainer and the DeepSpeed engine hold them."""

    settings: dict[str, Any]
    dtype: str
    per_device_batch: int
    accumulation: int
    world_size: int
    zero_stage: int


class GenerateEffective(Effective):
    """Settings with which the answers were generated; None for a sentinel that generates nothing."""

    generation: Generation | None = None
    device: str = ""
    dtype: str = ""


class EndpointEffective(Effective):
    """Facts that an endpoint gave about itself and the calls made to it."""

    models: tuple[str, ...] = ()
    fingerprints: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    calls: int = 0
    from_ledger: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spend: float = 0.0


class JudgeEffective(EndpointEffective):
    """Facts of an LLM judge's endpoint; empty for other judges."""

    structured: bool | None = None


class ServedEffective(EndpointEffective):
    """Facts of a served policy's endpoint, and the parameters that its requests had."""

    sampling: dict[str, Any] = Field(default_factory=dict)


class StepFacts(Stored):
    """Facts about how a step was carried out.

    Attributes:
        workers: Processes that worked.
        seconds: From the start of the first worker process to the end.
        device_seconds: Seconds x accelerators held (CPU workers where there are none).
        started_at, first_update_at, ended_at: Seconds since the epoch. The first update is the first training update,
            or the first answer or score.
    """

    metrics: SerializeAsAny[Metrics]
    effective: SerializeAsAny[Effective]
    workers: int
    seconds: float
    device_seconds: float
    started_at: float
    first_update_at: float
    ended_at: float


class StepResult(StepFacts):
    """What an executor returns for a step.

    Attributes:
        files: Digest of each output file by name, where the process that wrote them has uploaded them; else None.
    """

    files: dict[str, str] | None = None


class StepRecord(StepFacts):
    """A done step, as the store keeps it in `record.json`. Read one with `sacpo.planning.kinds.read_record`.

    Attributes:
        recipe: Recipe version of the kind that produced it.
        parents: Role to step id.
        output: Name of the folder that holds the output.
        files: Digest of each file of the output, by its path in that folder.
        attempts: Number of the attempt that succeeded.
        run: Id of the sweep run that did it.
    """

    step_id: str
    kind: str
    label: str
    recipe: int
    parents: dict[str, str]
    output: str
    files: dict[str, str]
    attempts: int
    run: str


class Failure(Stored):
    """Why an attempt at a step failed.

    Attributes:
        run: Id of the sweep run.
        error: The reason.
        log: The log that was written last, as a path in the store; None if there is none.
        time: Seconds since the epoch.
    """

    run: str
    error: str
    log: str | None
    time: float
