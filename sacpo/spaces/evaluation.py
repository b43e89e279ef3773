"""The models of a space's `evaluation`: prompts, judges, criteria, and what is asked of them."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from sacpo.spaces.training import Name, Share, Strict, Training

CRITERIA = ("helpfulness", "harmlessness")  # the front's axes; every space has them
OPTIONAL_CRITERIA = ("compliance",)
Sentinel = Literal["always-refuse", "longest-answer"]


class SyntheticPrompts(Strict):
    kind: Literal["synthetic"]
    category: Literal["benign", "risky", "all"] = "all"


class PromptFile(Strict):
    """JSON list, JSONL or CSV with `prompt` and, if it has one, `category`."""

    kind: Literal["file"]
    path: str
    limit: int | None = Field(None, ge=1, description="the first so many; all when absent")


Prompts = Annotated[SyntheticPrompts | PromptFile, Field(discriminator="kind")]


class GoldJudge(Strict):
    """The synthetic world's own r (helpfulness), g (harmlessness), or whether an answer refuses (compliance)."""

    kind: Literal["gold"]


class NoisyJudge(Strict):
    """The synthetic world's gold judge with known faults, so that statistics can be held against the truth."""

    kind: Literal["noisy"]
    error: float = Field(0.0, ge=0, le=0.5, description="probability that a verdict is turned round")
    order_bias: float = Field(0.0, ge=0, le=1, description="probability that the answer shown first wins unseen")
    repeats: int = Field(1, ge=1, description="calls per pair and order")
    seed: int = Field(0, ge=0)


class RewardModelJudge(Strict):
    """A sequence-classification reward or cost model with one output."""

    kind: Literal["reward_model"]
    path: str
    revision: str | None = None
    higher_is: Literal["better", "worse"]
    tie_margin: float = Field(0.0, ge=0, description="scores closer than this are a tie")
    prompt_template: str = "chat"
    max_length: int = Field(1024, ge=4)


class TrainedJudge(Strict):
    """A reward model trained by the sweep on the prompts that `data.judge_fraction` keeps from the policies."""

    kind: Literal["trained_reward_model"]
    objective: Name
    training: Training
    held_out_fraction: float = Field(
        0.2, gt=0, lt=1, description="share of the judge's prompts that measure its accuracy"
    )
    tie_margin: float = Field(0.0, ge=0)
    seed: int = Field(0, ge=0)


class Calls(Strict):
    """How an endpoint is called. Nothing here changes what a verdict is, so nothing here changes a step's id."""

    concurrency: int = Field(16, ge=1, description="calls under way at once, over all steps of the sweep")
    timeout: float = Field(60.0, gt=0, description="seconds that one call may take")
    attempts: int = Field(8, ge=1, description="tries before a verdict counts as unavailable or unparsable")
    max_calls: int | None = Field(None, ge=1, description="calls that one run of the sweep may make")
    max_spend: float | None = Field(None, gt=0, description="what one run may spend, in the currency of the prices")
    price_prompt: float | None = Field(None, ge=0, description="price of a million prompt tokens")
    price_completion: float | None = Field(None, ge=0, description="price of a million completion tokens")


class LLMJudge(Strict):
    """A chat model behind an OpenAI-compatible endpoint, asked in both presentation orders."""

    kind: Literal["llm"]
    model: str = Field(min_length=1, description="the model's name at the endpoint")
    revision: str = Field("", description="names the version of the weights; another one's verdicts are not reused")
    base_url: str | None = Field(None, description="http(s)://HOST/v1 of the endpoint; the vendor's own when absent")
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key; null for an endpoint that asks for none"
    )
    rubric: str | None = Field(None, description="text file that says what makes an answer better; ours when absent")
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(1024, ge=1, description="tokens of one reply")
    seed: int | None = Field(None, ge=0, description="sent to the endpoint")
    repeats: int = Field(1, ge=1, description="calls per pair and order")
    calls: Calls = Calls()


Judge = Annotated[
    GoldJudge | NoisyJudge | RewardModelJudge | TrainedJudge | LLMJudge,
    Field(discriminator="kind"),
]


class Criterion(Strict):
    prompts: Prompts
    judge: Judge
    panel: dict[Name, Judge] = Field(
        default_factory=dict, description="further judges by name; they give tables of their own beside the judge's"
    )


class Generation(Strict):
    max_new_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1)
    samples: int = Field(1, ge=1, description="answers per prompt")
    batch_size: int = Field(32, ge=1, description="answers at once")
    engine: Literal["batched", "continuous"] = Field(
        "batched", description="transformers' generate on batches of like length, or its continuous batching"
    )
    seed: int = Field(0, ge=0)


class Evaluation(Strict):
    generation: Generation = Generation()
    helpfulness: Criterion
    harmlessness: Criterion
    compliance: Criterion | None = Field(
        None, description="over-refusal: benign prompts, won by the answer that helps where the other refuses"
    )
    min_coverage: Share = Field(0.9, description="a trial with a smaller share of decided verdicts is failed")
    sentinels: tuple[Sentinel, ...] = Field(
        get_args(Sentinel), strict=False, description="policies of no merit that show what a judge rewards"
    )
    all_pairs: bool = Field(False, description="judge every pair of policies, for a Bradley-Terry ranking")

    @property
    def criteria(self) -> dict[str, Criterion]:
        """The criteria that this space has, the front's axes first."""
        found = {name: getattr(self, name) for name in (*CRITERIA, *OPTIONAL_CRITERIA)}
        return {name: criterion for name, criterion in found.items() if criterion is not None}
