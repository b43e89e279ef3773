"""The models of a space's `evaluation`: prompts, generation, judges and criteria."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, field_validator

from sacpo.spaces.base import Fraction, InputPath, LocalPath, ModelPath, Name, OneOrList, Strict, as_list
from sacpo.spaces.endpoint import EndpointSettings
from sacpo.spaces.sources import RowSource
from sacpo.spaces.training import RewardTraining

CRITERIA = ("helpfulness", "harmlessness")  # the axes of the front; every space has them
OPTIONAL_CRITERIA = ("compliance",)
Sentinel = Literal["always-refuse", "longest-answer"]


# --------------------------------------------------------------------------------------------------------- the prompts


class SyntheticPrompts(Strict):
    """The questions of the synthetic world."""

    synthetic: ClassVar[bool] = True

    kind: Literal["synthetic"] = Field(description="questions of the synthetic world; needs model.kind synthetic")
    category: Literal["benign", "risky", "all"] = Field(
        "all", description="which questions: the 12 benign ones, the 12 risky ones, or all 24 (default)"
    )


class PromptFile(Strict):
    """A JSON list, JSONL or CSV file with a column `prompt` and, optionally, `category`."""

    synthetic: ClassVar[bool] = False

    kind: Literal["file"] = Field(description="prompts from a local file")
    path: Annotated[str, InputPath(needed_to_plan=False)] = Field(
        description="JSON list, JSONL or CSV file with a column `prompt` and, optionally, `category`; "
        "relative to the space file"
    )
    limit: int | None = Field(None, ge=1, description="number of prompts to take from the start; null means all")


class PromptRows(RowSource):
    """Prompts from the same sources as training rows, the hub included."""

    kind: Literal["files"] = Field(
        description="prompts of one turn from files, a folder or the hub: a column `prompt` and, optionally, "
        "`category` (else `type`); repeated prompts count once, and prompts of several turns are left out"
    )
    limit: int | None = Field(None, ge=1, description="number of prompts to take from the start; null means all")
    max_invalid_fraction: Fraction = Field(
        0.0,
        description="the source is an error if a larger fraction of its rows is invalid; invalid rows are left out; "
        "default 0",
    )


PromptSource = Annotated[SyntheticPrompts | PromptFile | PromptRows, Field(discriminator="kind")]
PromptSources = Annotated[list[PromptSource], Field(min_length=1), BeforeValidator(as_list), OneOrList()]


# ---------------------------------------------------------------------------------------------------------- the judges


VerdictScale = Literal["outcomes", "probabilities"]


class JudgeBase(Strict):
    """Base of the settings of all judges.

    Attributes:
        synthetic_only: The judge scores by the synthetic world's own values.
        loads_model: A step of the judge loads a model, so it needs a worker.
        calls_endpoint: The judge calls an endpoint, which can cost money.
        is_trained: The sweep trains the judge before the judge is used.
        is_imported: The verdicts come from a file, so that there are none on canned pairs.
        gives_scores: The judge scores each answer by itself.
    """

    synthetic_only: ClassVar[bool] = False
    loads_model: ClassVar[bool] = False
    calls_endpoint: ClassVar[bool] = False
    is_trained: ClassVar[bool] = False
    is_imported: ClassVar[bool] = False
    gives_scores: ClassVar[bool] = False

    verdicts: VerdictScale = Field(
        "outcomes",
        description="score of a verdict: 1, 0.5 or 0 for win, tie or loss (outcomes, default), or the probability of a "
        "win, ties half (probabilities)",
    )


class GoldJudge(JudgeBase):
    """The synthetic world's exact values: r (helpfulness), g (harmlessness), or no refusal (compliance)."""

    synthetic_only: ClassVar[bool] = True
    gives_scores: ClassVar[bool] = True

    kind: Literal["gold"] = Field(description="exact values of the synthetic world; needs model.kind synthetic")


class NoisyJudge(JudgeBase):
    """The gold judge with errors of known size, so that statistics can be compared with the truth."""

    synthetic_only: ClassVar[bool] = True

    kind: Literal["noisy"] = Field(description="the gold judge with errors of known size")
    error: float = Field(0.0, ge=0, le=0.5, description="probability that a verdict is reversed; default 0")
    order_bias: float = Field(
        0.0, ge=0, le=1, description="probability that the answer shown first wins whatever it is; default 0"
    )
    repeats: int = Field(1, ge=1, description="verdicts per pair and presentation order; default 1")
    seed: int = Field(0, ge=0, description="seed of the errors; default 0")


class RewardModelJudge(JudgeBase):
    """A sequence-classification reward or cost model."""

    loads_model: ClassVar[bool] = True
    gives_scores: ClassVar[bool] = True
    not_hashed: ClassVar[frozenset[str]] = frozenset({"path", "revision"})

    kind: Literal["reward_model"] = Field(description="a reward or cost model from a folder or the hub")
    path: ModelPath = Field(description="folder (relative to the space file) or hub id of the model")
    revision: str | None = Field(None, description="commit of the hub repository; required for a hub id")
    higher_is: Literal["better", "worse"] = Field(
        description="meaning of a higher output: better for a reward model, worse for a cost model"
    )
    tie_margin: float = Field(
        0.0, ge=0, description="largest difference of two outputs that counts as a tie; the default 0 means equal only"
    )
    output: int | None = Field(
        None,
        ge=0,
        description="index of the output that is the score; null, the default, is for a model with one output",
    )
    prompt_template: str = Field(
        "chat",
        description="`chat` for the model's own chat template (default), or text that contains {prompt}, and "
        "{response} where the answer does not simply follow",
    )
    max_length: int = Field(
        1024,
        ge=4,
        description="tokens of prompt and answer together; a longer text, or one longer than the model's context, gets "
        "no verdict; default 1024",
    )

    @field_validator("prompt_template")
    @classmethod
    def _template(cls, value: str) -> str:
        if value != "chat" and "{prompt}" not in value:
            raise ValueError("must be `chat` or contain {prompt}")
        return value


class TrainedJudge(JudgeBase):
    """A reward model that the sweep trains on the prompts that `data.judge_fraction` keeps from the policies."""

    loads_model: ClassVar[bool] = True
    gives_scores: ClassVar[bool] = True
    is_trained: ClassVar[bool] = True
    not_hashed: ClassVar[frozenset[str]] = frozenset({"training"})  # the id of the training step covers it

    kind: Literal["trained_reward_model"] = Field(description="a reward model that the sweep trains")
    objective: Name = Field(description="objective of data.preferences whose pairs the reward model learns from")
    training: RewardTraining = Field(description="training settings of the reward model")
    held_out_fraction: float = Field(
        0.2, gt=0, lt=1, description="fraction of the judge's prompts that measure its accuracy; default 0.2"
    )
    tie_margin: float = Field(
        0.0, ge=0, description="largest difference of two rewards that counts as a tie; the default 0 means equal only"
    )
    seed: int = Field(0, ge=0, description="seed of the order of examples and of the new output layer; default 0")


class LLMJudge(EndpointSettings, JudgeBase):
    """A chat model behind an OpenAI-compatible endpoint, asked in both presentation orders."""

    calls_endpoint: ClassVar[bool] = True
    not_hashed: ClassVar[frozenset[str]] = EndpointSettings.not_hashed | {"rubric"}

    kind: Literal["llm"] = Field(description="a chat model behind an OpenAI-compatible endpoint")
    rubric: Annotated[str | None, InputPath()] = Field(
        None,
        description="text file that explains what makes an answer better; relative to the space file; "
        "null means the built-in rubric of the criterion",
    )
    temperature: float | None = Field(
        0.0, ge=0, description="sampling temperature; the default 0 means greedy; null sends none"
    )
    max_tokens: int | None = Field(
        1024,
        ge=1,
        description="largest number of tokens of one reply, a reasoning model's thoughts included; default 1024; null "
        "sends none",
    )
    seed: int | None = Field(None, ge=0, description="seed that is sent to the endpoint; null sends none")
    response_format: Literal["json_schema"] | None = Field(
        "json_schema", description="format of replies that is asked for; null sends none"
    )
    reasons: bool = Field(
        True,
        description="whether the judge writes its reasons before the verdict (true, default); without them a reply "
        "takes a few tokens",
    )
    system_role: Literal["system", "developer"] | None = Field(
        "system", description="role of the message with the instructions; null puts them into the user's message"
    )
    repeats: int = Field(1, ge=1, description="calls per pair and presentation order; default 1")


class AnnotationsJudge(JudgeBase):
    """Verdicts of AlpacaEval's annotators on the answers of this sweep, from a file."""

    is_imported: ClassVar[bool] = True
    not_hashed: ClassVar[frozenset[str]] = frozenset({"path"})

    kind: Literal["annotations"] = Field(description="verdicts from AlpacaEval's annotations.json; on a panel only")
    path: LocalPath = Field(description="the file annotations.json, relative to the space file")
    verdicts: VerdictScale = Field(
        "probabilities",
        description="score of a verdict: the annotator's preference (probabilities, default), or 1, 0.5 or 0 for win, "
        "tie or loss (outcomes)",
    )


JudgeSettings = Annotated[
    GoldJudge | NoisyJudge | RewardModelJudge | TrainedJudge | LLMJudge | AnnotationsJudge,
    Field(discriminator="kind"),
]


# ------------------------------------------------------------------------------------------------------ the evaluation


class Criterion(Strict):
    """One criterion: the prompts that policies answer, and the judges of the answers."""

    prompts: PromptSources = Field(
        description="prompts that policies answer: one source, or a list of several; repeated prompts count once"
    )
    judge: JudgeSettings = Field(description="judge whose win rates decide the front")
    panel: dict[Name, JudgeSettings] = Field(
        default_factory=dict,
        description="more judges by name; their results are in tables of their own; the default is none",
    )


class Generation(Strict):
    """How policies answer prompts."""

    max_new_tokens: int = Field(512, ge=1, description="largest number of tokens of one answer; default 512")
    temperature: float = Field(0.0, ge=0, description="sampling temperature; the default 0 means greedy")
    top_p: float = Field(
        1.0, gt=0, le=1, description="nucleus sampling: probability mass to sample from; the default 1 means all"
    )
    samples: int = Field(1, ge=1, description="answers per prompt; default 1")
    batch_size: int = Field(32, ge=1, description="answers that are generated at the same time; default 32")
    engine: Literal["batched", "continuous"] = Field(
        "batched",
        description="transformers' `generate` on batches of similar length (batched, default), or transformers' "
        "continuous batching (continuous)",
    )
    seed: int = Field(0, ge=0, description="seed of the sampling; default 0")


class Evaluation(Strict):
    """How policies are evaluated."""

    generation: Generation = Field(Generation(), description="how policies answer prompts")
    helpfulness: Criterion = Field(description="prompts and judges of helpfulness, an axis of the front")
    harmlessness: Criterion = Field(description="prompts and judges of harmlessness, an axis of the front")
    compliance: Criterion | None = Field(
        None,
        description="prompts and judges of over-refusal: on benign prompts, an answer that helps wins over a refusal; "
        "null means not measured",
    )
    min_coverage: Fraction = Field(
        0.9, description="a trial fails if a smaller fraction of its verdicts is decided; default 0.9"
    )
    max_fooled_fraction: float = Field(
        0.1,
        ge=0,
        le=1,
        description="the sweep stops if a judge prefers a larger fraction of the canned answers that try to talk it "
        "round; default 0.1",
    )
    sentinels: tuple[Sentinel, ...] = Field(
        get_args(Sentinel),
        strict=False,
        description="policies without merit that are judged too, to show what a judge rewards; default: all",
    )
    all_pairs: bool = Field(
        False, description="judge every pair of policies, for a Bradley-Terry ranking; default false"
    )

    racing: bool = Field(
        False,
        description="ask for verdicts in rounds, and judge no further what has no chance left of reaching the front "
        "or, with a constraint, of being chosen; default false",
    )

    @property
    def criteria(self) -> dict[str, Criterion]:
        """The criteria of this space by name, the axes of the front first."""
        criteria = {name: getattr(self, name) for name in (*CRITERIA, *OPTIONAL_CRITERIA)}
        return {name: criterion for name, criterion in criteria.items() if criterion is not None}
