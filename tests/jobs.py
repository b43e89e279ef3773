"""Steps and jobs by themselves, without a plan, for tests of single steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sacpo.data.prompts import Prompt
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.planning.kinds import KINDS
from sacpo.planning.metrics import (
    CanaryMetrics,
    DataMetrics,
    GenerateMetrics,
    JudgeMetrics,
    Metrics,
    ModelMetrics,
    PreferencesMetrics,
    RaceMetrics,
    ReferenceMetrics,
    TrainMetrics,
)
from sacpo.planning.payloads import FileContent, GeneratePayload, ModelPayload, Payload
from sacpo.planning.plan import Step
from sacpo.planning.records import StepResult, TrainEffective
from sacpo.spaces.evaluation import Generation
from sacpo.spaces.space import PretrainedModel, Resources, SyntheticModel
from sacpo.store.step_store import Store
from sacpo.synthetic.world import PROMPTS, WORLD_VERSION

MERGE = GeneratePayload(generation=Generation(), prompts="prompts-0", prompt_template="{prompt} ", q=0.5)
"""Any payload, for steps that are not carried out."""
WORLD_PROMPTS = tuple(Prompt(str(i), text, category) for i, (text, category) in enumerate(PROMPTS))
"""All prompts of the synthetic world."""


def step(step_id: str, kind: str = "generate", payload: Payload = MERGE) -> Step:
    """A step without parents."""
    return Step(id=step_id, kind=kind, label="a step", recipe=KINDS[kind].recipe, payload=payload, parents={})


def job(
    folder: Path,
    kind: str,
    payload: Payload,
    parents: dict[str, Path] | None = None,
    prompts: Sequence[Prompt] = (),
    **resources: Any,
) -> Job[Any]:
    """A job whose output, logs and store are in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Job(
        step=step("step-0", kind, payload),
        folder=folder,
        parents=parents or {},
        parent_records=(),
        prompts=tuple(prompts),
        resources=Resources(**resources),
        logs=folder / "logs",
        run="run",
        store=Store(folder),
    )


def synthetic_model(**changes: Any) -> ModelPayload:
    """Payload of a tiny model of the synthetic world."""
    settings = {"kind": "synthetic", "hidden_size": 16, "layers": 1, "heads": 2} | changes
    return ModelPayload(model=SyntheticModel.model_validate(settings), world=WORLD_VERSION)


def pretrained(path: Path, **changes: Any) -> ModelPayload:
    """Payload of a pretrained model in a folder."""
    settings = {"kind": "pretrained", "path": str(path), "dtype": "float32"} | changes
    return ModelPayload(model=PretrainedModel.model_validate(settings), content=FileContent(sha256="0"))


def policy(folder: Path, **changes: Any) -> Path:
    """Write a tiny, untrained policy of the synthetic world."""
    from sacpo.steps import model  # torch; tests of the store and the runner do without

    model.run(job(folder, "model", synthetic_model(**changes)))
    return folder


_METRICS: dict[str, Metrics] = {
    "model": ModelMetrics(parameters=0, vocabulary=0),
    "preferences": PreferencesMetrics(rows=0),
    "data": DataMetrics(rows=0, invalid_rows={}, evaluation_prompt_rows=0, examples=0),
    "reference": ReferenceMetrics(examples=0, tokens=0, padding=0),
    "train": TrainMetrics(
        updates=0, examples_per_epoch=0, first_loss=0.0, final_loss=0.0, resumed=False, start_seconds={}
    ),
    "probabilities": Metrics(),
    "served": GenerateMetrics(responses=0, tokens=0, finished_fraction=1.0),
    "likelihoods": ReferenceMetrics(examples=0, tokens=0, padding=0),
    "generate": GenerateMetrics(responses=0, tokens=0, finished_fraction=1.0),
    "judge": JudgeMetrics(verdicts=0, calls=0, undecided=0, prompt_tokens=0, completion_tokens=0),
    "race": RaceMetrics(compared=0, stopped=0),
    "canary": CanaryMetrics(
        verdicts=0, calls=0, undecided=0, prompt_tokens=0, completion_tokens=0, win_rate=1.0, order_inconsistency=None
    ),
}
_TRAINED = TrainEffective(settings={}, dtype="float32", per_device_batch=1, accumulation=1, world_size=1, zero_stage=0)


def empty_result(kind: str) -> StepResult:
    """The result of a step of this kind that did nothing."""
    effective = _TRAINED if kind == "train" else KINDS[kind].effective()
    return StepReport(metrics=_METRICS[kind], effective=effective).result()
