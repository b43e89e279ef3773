"""Payloads: the settings and inputs that decide what a step writes, one frozen model for each kind of step.

Those of steps that judge are in `sacpo.planning.judge_payloads`.

A step's id is the hash of its payload (`sacpo.hashing.content_id`), so a payload holds everything that can
change the output, except for the parents, whose ids are hashed beside it. Fields that only say where an input is or how
it is reached (`not_hashed` of a settings class: paths, endpoints, rates of calls) travel in the payload and are left
out of the hash.

A field that has its default value is left out of the hash too. A setting that is added later therefore changes no id
while it has its default. If a default changes, the recipe version of the kind must go up (`sacpo.planning.kinds`);
`tests/test_kinds.py` compares the defaults with a snapshot.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from sacpo.spaces.evaluation import Generation
from sacpo.spaces.merging import LINEAR, Combination
from sacpo.spaces.methods import ExampleShape
from sacpo.spaces.model_loading import Loading, LoRA
from sacpo.spaces.sources import SyntheticDemonstrations, SyntheticPreferences
from sacpo.spaces.space import Files, Model
from sacpo.spaces.training import DPOTraining, KTOTraining, RewardTraining, SFTTraining


class Frozen(BaseModel):
    """Base of the models that are written to the store and to `plan.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    not_hashed: ClassVar[frozenset[str]] = frozenset()


class FileContent(Frozen):
    """An input at a local path, identified by its bytes."""

    sha256: str


class HubContent(Frozen):
    """An input on the Hugging Face hub, identified by its repository and revision."""

    hub: str
    revision: str


Content = FileContent | HubContent


class Payload(Frozen):
    """Base of all payloads."""

    @property
    def prompt_set(self) -> str | None:
        """Id of the prompts that the step needs (`Plan.prompt_sets`); None if it needs none."""
        return None


class ModelPayload(Payload):
    """`model`: the policy that training starts from.

    Attributes:
        content: Identity of the pretrained weights; None in the synthetic world.
        world: Version of the synthetic world; None for a pretrained model.
    """

    model: Model
    content: Content | None = None
    world: int | None = None


class PreferencesPayload(Payload):
    """`preferences`: pairs that the synthetic world samples from the SFT policy and labels."""

    settings: SyntheticPreferences
    world: int


class _Examples(Payload):
    """Fields that all data payloads share.

    Attributes:
        objective: Objective of the preferences; None for demonstrations.
        side: Whose share of the prompts is kept: the policies' or the judges'.
        excluded_prompts: Id of the evaluation prompts that are kept out of the examples.
    """

    objective: str | None
    shape: ExampleShape
    max_length: int
    judge_fraction: float = 0.0
    side: Literal["policy", "judge"] = "policy"
    held_out_fraction: float = 0.0
    prompt_template: str
    excluded_prompts: str

    @property
    def prompt_set(self) -> str | None:
        """Id of the prompts that the step needs."""
        return self.excluded_prompts


class FilesPayload(_Examples):
    """`data` from a file, a folder or the hub."""

    rows_from: Literal["files"]
    files: Files
    content: Content


class DemonstrationsPayload(_Examples):
    """`data` from the synthetic world's demonstrations."""

    rows_from: Literal["demonstrations"]
    settings: SyntheticDemonstrations
    world: int


class SampledPayload(_Examples):
    """`data` from a `preferences` step, which is the parent `preferences`."""

    rows_from: Literal["preferences"]


DataPayload = Annotated[FilesPayload | DemonstrationsPayload | SampledPayload, Field(discriminator="rows_from")]


class InspectionPayload(Payload):
    """`inspection`: checks of what the model will see; the parents are the base model and all data steps.

    Attributes:
        prompts: Id of the evaluation prompts, with the criterion in place of the category.
        batch_sizes: Role of a data step to (setting, batch size) of each stage that is trained on it.
    """

    prompts: str
    prompt_template: str
    max_length: int
    max_new_tokens: int
    batch_sizes: dict[str, tuple[tuple[str, int], ...]]
    loading: Loading = Loading()

    @property
    def prompt_set(self) -> str | None:
        """Id of the prompts that the step needs."""
        return self.prompts


class ReferencePayload(Payload):
    """`reference`: log-probabilities that the parent policy gives to the completions of a data step."""

    shape: ExampleShape
    max_length: int
    loading: Loading = Loading()


class _Stage(Payload):
    """Fields that all training payloads share."""

    seed: int
    dtype: Literal["float32", "bfloat16"]
    max_length: int
    loading: Loading = Loading()


class SFTPayload(_Stage):
    """`train` by supervised fine-tuning on demonstrations."""

    method: Literal["sft"]
    settings: SFTTraining


class RewardPayload(_Stage):
    """`train` of a reward model (a trained judge) on pairs of one objective."""

    method: Literal["reward"]
    objective: str
    settings: RewardTraining


class DPOPayload(_Stage):
    """`train` by DPO; `kl_parameter` is beta in a chain's first stage and beta/lambda after it (paper, Theorem 1)."""

    method: Literal["dpo"]
    objective: str
    settings: DPOTraining
    kl_parameter: float


class KTOPayload(_Stage):
    """`train` by KTO; `kl_parameter` as for DPO."""

    method: Literal["kto"]
    objective: str
    settings: KTOTraining
    kl_parameter: float


AnyTrainPayload = SFTPayload | RewardPayload | DPOPayload | KTOPayload
TrainPayload = Annotated[AnyTrainPayload, Field(discriminator="method")]
STAGE_PAYLOADS: dict[str, type[DPOPayload] | type[KTOPayload]] = {"dpo": DPOPayload, "kto": KTOPayload}
"""Payload of each method that a chain's stages may use."""


def kl_parameter(payload: AnyTrainPayload) -> float | None:
    """KL parameter of a training step; None for methods that have no reference policy."""
    return payload.kl_parameter if isinstance(payload, DPOPayload | KTOPayload) else None


def lora_of(payload: Payload) -> LoRA | None:
    """The adapters that a step trains; None for a step that trains none or all weights."""
    return payload.settings.lora if isinstance(payload, SFTPayload | DPOPayload | KTOPayload) else None


class ProbabilitiesPayload(Payload):
    """`probabilities`: probability of every answer of the synthetic world under a policy (a merge if `q` is given)."""

    world: int
    q: float | None = None
    combination: Combination = LINEAR
    loading: Loading = Loading()


class GeneratePayload(Payload):
    """`generate`: answers of a policy (a merge if `q` is given) or of a sentinel to one criterion's prompts.

    Attributes:
        prompts: Id of the prompts.
        refusal: The sentinel `always-refuse` gives this text to every prompt.
        keep_longest_of: The sentinel `longest-answer` draws so many answers and keeps the longest one.
    """

    generation: Generation
    prompts: str
    prompt_template: str
    q: float | None = None
    combination: Combination = LINEAR
    refusal: str | None = None
    keep_longest_of: int = 1
    loading: Loading = Loading()

    @property
    def prompt_set(self) -> str | None:
        """Id of the prompts that the step needs."""
        return self.prompts


class LikelihoodsPayload(Payload):
    """`likelihoods`: log-probabilities that a policy (a merge if `q` is given) gives to answers of several policies."""

    prompt_template: str
    q: float | None = None
    loading: Loading = Loading()


def hashed(model: BaseModel) -> dict[str, Any]:
    """The part of a model that is hashed: fields that differ from their defaults and are not in `not_hashed`."""
    skipped: frozenset[str] = getattr(type(model), "not_hashed", frozenset())
    result = {}
    for name, field in type(model).model_fields.items():
        if name in skipped:
            continue
        value = _plain(getattr(model, name))
        if field.is_required() or value != _plain(field.get_default(call_default_factory=True)):
            result[name] = value
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return hashed(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
