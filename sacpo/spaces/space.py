"""The models of a space: what varies in a sweep and what stays fixed.

A space is strict. Unknown keys, wrong types and values out of range are refused; `sacpo.spaces.loading` reads the YAML file
and turns every refusal into a line that names the setting. What is decided here is only what a setting may be; how the
space expands into trials and steps is `sacpo.planning.plan`.

Settings under `resources` say how work is executed. They change no step's id: a sweep may be continued with other
workers. Every other setting counts towards the ids of the steps that it can change.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from sacpo.spaces.evaluation import Evaluation
from sacpo.spaces.training import (
    KL_SCHEMA,
    DPOTraining,
    KLGrid,
    KLParameter,
    KTOTraining,
    Name,
    RatioGrid,
    SFTTraining,
    Share,
    Strict,
    Training,
    as_list,
)

METHODS = ("dpo", "kto")
_STAGE = re.compile(rf"^({'|'.join(METHODS)}):([a-z][a-z0-9_-]*)$")


def _nested(value: Any) -> Any:
    """`0.1`, `[0.1, 0.05]` and `[[0.1], [0.05]]` all mean one list of values per re-alignment stage."""
    values = as_list(value)
    return values if any(isinstance(v, list) for v in values) else [values]


RealignmentGrid = Annotated[
    list[KLGrid],
    Field(min_length=1),
    BeforeValidator(_nested),
    WithJsonSchema(
        {
            "anyOf": [
                KL_SCHEMA,
                {"type": "array", "items": {"anyOf": [KL_SCHEMA, {"type": "array", "items": KL_SCHEMA}]}},
            ]
        },
    ),
]


def parse_chain(chain: str) -> list[tuple[str, str]]:
    """Split `dpo:helpfulness>kto:harmlessness` into `[(method, objective), ...]`.

    Raises:
        ValueError: a stage is not `dpo:OBJECTIVE` or `kto:OBJECTIVE`.
    """
    stages = []
    for part in chain.split(">"):
        match = _STAGE.match(part.strip())
        if match is None:
            raise ValueError(
                f"stage {part.strip()!r} is not METHOD:OBJECTIVE with METHOD one of {', '.join(METHODS)}; "
                "write for example dpo:helpfulness>dpo:harmlessness"
            )
        stages.append((match[1], match[2]))
    return stages


def _valid_chain(chain: str) -> str:
    return ">".join(f"{method}:{objective}" for method, objective in parse_chain(chain))


Chain = Annotated[str, BeforeValidator(lambda c: _valid_chain(c) if isinstance(c, str) else c)]


# ---------------------------------------------------------------------------------------------------------- the model


class SyntheticModel(Strict):
    """A small Llama, randomly initialised, over the synthetic world's sentences."""

    kind: Literal["synthetic"]
    hidden_size: int = Field(64, ge=8, multiple_of=8, description="width of the residual stream")
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    seed: int = Field(0, ge=0, description="seed of the initial weights")
    dtype: Literal["float32", "bfloat16"] = "float32"


class PretrainedModel(Strict):
    """A causal language model: a folder, or a hub id with the revision that pins it."""

    kind: Literal["pretrained"]
    path: str = Field(description="folder (relative to the space file) or hub id")
    revision: str | None = Field(None, description="commit of the hub repository; needed for a hub id")
    gguf_file: str | None = Field(None, description="file inside `path`, dequantised when read")
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    prompt_template: str = Field(
        "chat", description="`chat` for the tokenizer's chat template, or text with {prompt} in it"
    )

    @field_validator("prompt_template")
    @classmethod
    def _has_prompt(cls, value: str) -> str:
        if value != "chat" and "{prompt}" not in value:
            raise ValueError("must be `chat` or contain {prompt}")
        return value


Model = Annotated[SyntheticModel | PretrainedModel, Field(discriminator="kind")]


# ----------------------------------------------------------------------------------------------------------- the data


class SyntheticDemonstrations(Strict):
    """Prompt and response pairs drawn from the synthetic world's human distribution."""

    kind: Literal["synthetic"]
    rows: int = Field(8192, ge=1)
    seed: int = Field(0, ge=0)


class SyntheticPreferences(Strict):
    """Pairs sampled from the SFT policy and labelled by Bradley-Terry on the gold reward and the gold safety."""

    kind: Literal["synthetic"]
    rows: int = Field(16384, ge=1)
    garbled_fraction: Share = Field(0.03, description="share of pairs whose loser has a word out of place")
    seed: int = Field(0, ge=0)


class Files(Strict):
    """Rows from a file, a `datasets` folder or a hub id."""

    kind: Literal["files"]
    path: str = Field(description="JSONL, JSON, CSV or Parquet file (.gz too), `datasets` folder, or hub id")
    revision: str | None = Field(None, description="commit of the hub repository; needed for a hub id")
    split: str = "train"
    format: Literal["pku-saferlhf", "hh-rlhf", "pairs", "labelled", "demonstrations"]
    limit: int | None = Field(None, ge=1, description="use this many rows, drawn with `seed`; all when absent")
    seed: int = Field(0, ge=0)
    max_invalid_fraction: Share = Field(0.01, description="more bad rows than this share refuse the file")


Demonstrations = Annotated[SyntheticDemonstrations | Files, Field(discriminator="kind")]
Preferences = Annotated[SyntheticPreferences | Files, Field(discriminator="kind")]


class Data(Strict):
    demonstrations: Demonstrations | None = Field(None, description="what the sft stage trains on")
    preferences: dict[Name, Preferences] = Field(min_length=1, description="one source per objective")
    max_length: int = Field(512, ge=4, description="tokens of prompt and response together; longer rows are refused")
    judge_fraction: Share = Field(0.0, description="share of prompts kept from the policies, for judges to train on")


# ------------------------------------------------------------------------------------------------------- the training


class StageOverride(Strict):
    """Settings that one stage changes; what is absent keeps the method's value."""

    learning_rate: float | None = Field(None, gt=0, lt=1)
    epochs: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    warmup_ratio: Share | None = None
    weight_decay: float | None = Field(None, ge=0)


class Stages(Strict):
    sft: SFTTraining | None = Field(None, description="absent: the model itself is the SFT policy")
    dpo: DPOTraining | None = None
    kto: KTOTraining | None = None
    overrides: dict[str, StageOverride] = Field(
        default_factory=dict, description="`dpo:harmlessness: {learning_rate: 5e-6}` changes that stage alone"
    )

    def merged_overrides(self) -> dict[str, Training | None]:
        """Each overridden stage's whole settings."""
        return {key: self.settings(*parse_chain(key)[0]) for key in self.overrides if _STAGE.match(key)}

    def settings(self, method: str, objective: str) -> Training | None:
        """The settings of one stage: the method's, with the stage's override applied."""
        base: Training | None = getattr(self, method)
        override = self.overrides.get(f"{method}:{objective}")
        if base is None or override is None:
            return base
        return base.model_copy(update=override.model_dump(exclude_none=True))


# ------------------------------------------------------------------------------------------------------------ the grid


class ChainGrid(Strict):
    """Every combination of the values becomes a trial; so does every beginning of the chain."""

    chain: Chain
    beta: KLGrid = Field(description="KL parameter of the first stage")
    beta_over_lambda: RealignmentGrid | None = Field(
        None, description="KL parameter of the second stage; a list of lists for the second, third, ... stage"
    )


class Parent(Strict):
    chain: Chain
    beta: KLParameter
    beta_over_lambda: RealignmentGrid | None = None


class PSacpo(Strict):
    """(1-q) x the policy before the chain's last stage + q x the policy after it (paper, section 6)."""

    method: Literal["p-sacpo"]
    chain: Chain
    beta: KLGrid
    beta_over_lambda: RealignmentGrid
    q: RatioGrid


class NaiveMerge(Strict):
    """(1-q) x `first` + q x `second`, two policies trained independently from the SFT policy."""

    method: Literal["naive-merge"]
    first: Parent
    second: Parent
    q: RatioGrid


Merge = Annotated[PSacpo | NaiveMerge, Field(discriminator="method")]


class Resources(Strict):
    """How steps are executed. Nothing here changes a step's id."""

    workers: int = Field(1, ge=1, description="processes of one training step")
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: int = Field(0, ge=0, le=1)
    per_device_batch: int = Field(16, ge=1, description="at most so many examples in one forward pass of a worker")
    sharding: Literal["zero3", "ddp"] = "zero3"
    reference: Literal["bank", "live"] = Field(
        "bank", description="live: a stage keeps a copy of its parent policy and runs it beside; same results, slower"
    )
    checkpoint_steps: int = Field(200, ge=1, description="updates between two checkpoints of a running stage")
    max_restarts: int = Field(2, ge=0, description="times a stage is restarted after a worker died")


class Space(Strict):
    """A sweep's space: one YAML file in tune_spaces/."""

    name: Name
    model: Model
    data: Data
    training: Stages
    chains: list[ChainGrid] = Field(min_length=1)
    merges: list[Merge] = Field(default_factory=list)
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: [0], min_length=1)
    evaluation: Evaluation
    resources: Resources = Resources()

    @property
    def synthetic(self) -> bool:
        """Whether the space is about the synthetic world, where every expectation is exact."""
        return isinstance(self.model, SyntheticModel)

    @property
    def prompt_template(self) -> str:
        """`chat`, or the text around a prompt."""
        return "{prompt} " if isinstance(self.model, SyntheticModel) else self.model.prompt_template
