"""The models of a space: what a sweep varies and what it keeps fixed.

A space is strict: unknown keys, wrong types and values out of range are errors. `sacpo.spaces.loading` reads the YAML
file and turns every error into a line that names the setting. These models only define which values a setting may have;
`sacpo.planning.planner` expands a space into trials and steps.

Settings under `resources` and `report` define how work is executed and shown. They change no step's id, so a
sweep can be continued with other workers. Every other setting counts towards the ids of the steps that it can change.
"""

from __future__ import annotations

import difflib
from datetime import date
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from sacpo.spaces.base import (
    Fraction,
    ModelPath,
    Name,
    Strict,
)
from sacpo.spaces.chains import is_stage, parse_chain
from sacpo.spaces.constraints import Constraints
from sacpo.spaces.evaluation import Evaluation
from sacpo.spaces.grid import ChainGrid, Merge
from sacpo.spaces.model_loading import Attention, Loading, LoRA, Quantization
from sacpo.spaces.preview import Preview
from sacpo.spaces.report import Report
from sacpo.spaces.search import Search
from sacpo.spaces.served import ServedPolicy
from sacpo.spaces.sources import RowSource, SyntheticDemonstrations, SyntheticPreferences
from sacpo.spaces.training import DPOTraining, KTOTraining, PolicyTraining, SFTTraining, Training

# ---------------------------------------------------------------------------------------------------------- the model


class SyntheticModel(Strict):
    """A small Llama, randomly initialised, over the synthetic world's sentences."""

    synthetic: ClassVar[bool] = True
    prompt_template: ClassVar[str] = "{prompt} "
    loading: ClassVar[Loading] = Loading()

    kind: Literal["synthetic"] = Field(description="a small Llama of the synthetic world, randomly initialised")
    hidden_size: int = Field(64, ge=8, multiple_of=8, description="width of the residual stream; default 64")
    layers: int = Field(2, ge=1, description="transformer blocks; default 2")
    heads: int = Field(4, ge=1, description="attention heads of a block; must divide hidden_size; default 4")
    seed: int = Field(0, ge=0, description="seed of the initial weights; default 0")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of policies and of all computation; default float32"
    )


class PretrainedModel(Strict):
    """A causal language model: a folder, or a hub id with the revision that pins it."""

    synthetic: ClassVar[bool] = False
    # The steps that load a policy have `loading` in their own payloads.
    not_hashed: ClassVar[frozenset[str]] = frozenset({"path", "revision", "attn_implementation", "quantization"})

    kind: Literal["pretrained"] = Field(description="a causal language model from a folder or the hub")
    path: ModelPath = Field(description="folder (relative to the space file) or hub id of the model")
    revision: str | None = Field(None, description="commit of the hub repository; required for a hub id")
    gguf_file: str | None = Field(
        None, description="GGUF file inside `path`, which is dequantised when it is read; null means safetensors"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="number format of policies and of all computation; default bfloat16"
    )
    prompt_template: str = Field(
        "chat", description="`chat` for the tokenizer's chat template (default), or text that contains {prompt}"
    )
    chat_template_kwargs: dict[str, str | bool | int | float] = Field(
        default_factory=dict,
        description="variables that the chat template gets, such as enable_thinking: false; default none",
    )
    chat_date: str = Field(
        "2024-07-26",
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="today's date for chat templates that write it, so that every run renders the same; YYYY-MM-DD",
    )

    attn_implementation: Attention | None = Field(
        None, description="transformers' implementation of attention in training and generation; null lets it choose"
    )
    quantization: Quantization | None = Field(
        None,
        description="4-bit numbers (bitsandbytes) of the frozen weights below LoRA: nf4 or fp4; null means `dtype`",
    )

    @property
    def loading(self) -> Loading:
        """How every step loads the base of a policy."""
        return Loading(attn_implementation=self.attn_implementation, quantization=self.quantization)

    @field_validator("chat_date")
    @classmethod
    def _is_date(cls, value: str) -> str:
        date.fromisoformat(value)  # its error says what is wrong with the date
        return value

    @field_validator("prompt_template")
    @classmethod
    def _has_prompt(cls, value: str) -> str:
        if value != "chat" and "{prompt}" not in value:
            raise ValueError("must be `chat` or contain {prompt}")
        return value


Model = Annotated[SyntheticModel | PretrainedModel, Field(discriminator="kind")]


# ----------------------------------------------------------------------------------------------------------- the data


RowFormat = Literal["pku-saferlhf", "hh-rlhf", "pairs", "labelled", "demonstrations", "scored"]


class Files(RowSource):
    """Rows from files, a `datasets` folder or the hub."""

    kind: Literal["files"] = Field(description="rows from files, a folder or the hub")
    format: RowFormat = Field(
        description="columns of a row. pku-saferlhf: prompt, response_0, response_1, better_response_id, "
        "safer_response_id, is_response_0_safe, is_response_1_safe; hh-rlhf: chosen and rejected transcripts; pairs: "
        "prompt, chosen, rejected; labelled: prompt, completion, label; demonstrations: prompt, completion; "
        "scored: prompt, response, score "
        "(rows of one prompt belong together), or prompt and completions, a list of objects with response and score"
    )
    margin: float = Field(
        0.0, ge=0, description="scored: smallest difference of the best and the worst score of a pair; default 0"
    )
    threshold: float | None = Field(
        None, description="scored: score from which on a response is labelled good; null is for pairs only"
    )
    limit: int | None = Field(None, ge=1, description="number of rows to draw with `seed`; null means all")
    seed: int = Field(0, ge=0, description="seed of the draw; default 0")
    max_invalid_fraction: Fraction = Field(
        0.01,
        description="the source is an error if a larger fraction of its rows is invalid; invalid rows are left out; "
        "default 0.01",
    )


Demonstrations = Annotated[SyntheticDemonstrations | Files, Field(discriminator="kind")]
Preferences = Annotated[SyntheticPreferences | Files, Field(discriminator="kind")]


class Data(Strict):
    """The training data."""

    demonstrations: Demonstrations | None = Field(
        None, description="examples of the sft stage; null if there is no sft stage"
    )
    preferences: dict[Name, Preferences] = Field(min_length=1, description="one source of preferences per objective")
    max_length: int = Field(
        512, ge=4, description="tokens of prompt and response together; longer examples are invalid; default 512"
    )
    judge_fraction: Fraction = Field(
        0.0, description="fraction of the prompts that only trained judges learn from; the default 0 means none"
    )

    def known_objectives(self, unknown: str) -> str:
        """The objectives as text, with the one that is closest to an unknown one."""
        known = sorted(self.preferences)
        similar = difflib.get_close_matches(unknown, known, n=1)
        return f"{', '.join(known)}{f'; did you mean {similar[0]}?' if similar else ''}"


# ------------------------------------------------------------------------------------------------------- the training


class StageOverride(Strict):
    """Settings that one stage changes; null keeps the method's value."""

    learning_rate: float | None = Field(None, gt=0, lt=1, description="peak learning rate; null keeps the method's")
    epochs: int | None = Field(None, ge=1, description="passes over the examples; null keeps the method's")
    batch_size: int | None = Field(None, ge=1, description="examples per update; null keeps the method's")
    warmup_ratio: Fraction | None = Field(
        None, description="fraction of the updates with a rising learning rate; null keeps the method's"
    )
    weight_decay: float | None = Field(None, ge=0, description="AdamW's weight decay; null keeps the method's")
    lora: LoRA | None = Field(None, description="adapters instead of all weights; null keeps the method's")


class Stages(Strict):
    """Training settings of each method, and changes of single stages."""

    sft: SFTTraining | None = Field(
        None, description="supervised fine-tuning before all chains; null if the model is the SFT policy itself"
    )
    dpo: DPOTraining | None = Field(None, description="settings of DPO stages; null if no chain has any")
    kto: KTOTraining | None = Field(None, description="settings of KTO stages; null if no chain has any")
    overrides: dict[str, StageOverride] = Field(
        default_factory=dict,
        description="changes of single stages: `dpo:harmlessness: {learning_rate: 5e-6}` changes that stage alone; "
        "the default is none",
    )

    def method(self, name: str) -> Training | None:
        """Settings of a method (`sacpo.spaces.methods.METHODS`); None if the space has none."""
        settings: Training | None = getattr(self, name)
        return settings

    def merged_overrides(self) -> dict[str, Training | None]:
        """The complete settings of each overridden stage."""
        return {key: self.settings(*parse_chain(key)[0]) for key in self.overrides if is_stage(key)}

    def adapts(self, method: str, objective: str) -> bool:
        """Whether a stage trains adapters (LoRA) instead of all weights."""
        settings = self.settings(method, objective)
        return isinstance(settings, PolicyTraining) and settings.lora is not None

    def settings(self, method: str, objective: str) -> Training | None:
        """Settings of one stage: the method's settings, with the stage's override applied."""
        settings = self.method(method)
        override = self.overrides.get(f"{method}:{objective}")
        if settings is None or override is None:
            return settings
        changes = {name: value for name, value in override if value is not None}
        return settings.model_copy(update=changes)


class Resources(Strict):
    """How steps are executed. No setting here changes a step's id."""

    workers: int = Field(1, ge=1, description="processes of one training step; default 1")
    cpus_per_worker: int = Field(1, ge=1, description="CPU cores of one process; default 1")
    gpus_per_worker: int = Field(0, ge=0, le=1, description="GPUs of one process: 0 (default) or 1")
    per_device_batch: int = Field(
        16, ge=1, description="largest number of examples in one forward pass of a worker; default 16"
    )
    packing: bool = Field(
        True,
        description="pack texts into rows without padding, a pair's prompt once, where the model gives the same "
        "results; default true; false pads them",
    )
    sharding: Literal["zero3", "ddp"] = Field(
        "zero3", description="zero3 (default) shards a policy over the workers; ddp gives each worker a whole one"
    )
    optimizer_offload: bool = Field(
        False,
        description="keep gradients, AdamW's states and the float32 weights in the node's memory instead of the GPU's "
        "(ZeRO-Offload); same results, slower; needs sharding: zero3; default false",
    )
    reference: Literal["precomputed", "live"] = Field(
        "precomputed",
        description="log-probabilities of the reference policy: precomputed once for all stages (default), or live "
        "from a copy of the parent policy in each stage; same results, slower",
    )
    checkpoint_steps: int = Field(
        200, ge=1, description="updates between two checkpoints of a running stage; default 200"
    )
    max_restarts: int = Field(2, ge=0, description="restarts of a step after its worker died; default 2")


class Space(Strict):
    """The space of a sweep: one YAML file."""

    name: Name = Field(description="name of the sweep: lower-case letters, digits, - and _")
    model: Model = Field(description="the policy that training starts from")
    data: Data = Field(description="the training data")
    training: Stages = Field(description="training settings of each method")
    chains: list[ChainGrid] = Field(
        default_factory=list,
        description="chains of stages; every combination becomes a trial; may be left out if there is a `search`",
    )
    merges: list[Merge] = Field(
        default_factory=list, description="merges of policies; every combination becomes a trial; the default is none"
    )
    served: dict[Name, ServedPolicy] = Field(
        default_factory=dict,
        description="policies behind OpenAI-compatible endpoints by name, for comparison: each is a trial; the default "
        "is none",
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=lambda: [0], min_length=1, description="training seeds; each gives every trial; default [0]"
    )
    evaluation: Evaluation = Field(description="how policies are evaluated")
    constraint: Constraints = Field(
        default_factory=list, description="what the chosen policy must satisfy: one or several; the default is none"
    )
    preview: Preview | None = Field(None, description="estimate every criterion over lambda; null means no preview")
    report: Report | None = Field(
        None, description="trackers that get a run for every trial; null leaves it to WANDB_* and MLFLOW_* variables"
    )
    search: Search | None = Field(
        None, description="policies that are chosen while the sweep runs; null means those of chains and merges alone"
    )
    resources: Resources = Field(Resources(), description="how steps are executed")

    @property
    def synthetic(self) -> bool:
        """Whether the space is in the synthetic world, where every expectation is exact."""
        return self.model.synthetic

    @property
    def prompt_template(self) -> str:
        """`chat`, or text that contains {prompt}."""
        return self.model.prompt_template
