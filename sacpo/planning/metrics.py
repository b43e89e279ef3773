"""Measured numbers of a finished step, one frozen model for each kind of step.

They are the `metrics` of its record (`sacpo.planning.records`). A field that is added later needs a default, so that
records of older versions stay readable; fields of newer versions are ignored.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Stored(BaseModel):
    """Base of the models that only the store keeps; unknown fields of a newer version are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Metrics(Stored):
    """Measured numbers of a step; each kind has a model of its own."""

    @property
    def remark(self) -> str:
        """What is worth a word when the step has ended; usually nothing."""
        return ""


class ModelMetrics(Metrics):
    """Sizes of the base model, and what its own model card says; None where it says nothing.

    Attributes:
        license: Identifier of its licence, such as `apache-2.0`.
        base_model: Hub id of the model; for a folder, the hub id that its card names as its base.
    """

    parameters: int
    vocabulary: int
    license: str | None = None
    base_model: str | None = None


class PreferencesMetrics(Metrics):
    """Rows sampled from the synthetic world."""

    rows: int


class DataMetrics(Metrics):
    """Rows read, rows left out by reason, and examples kept.

    Attributes:
        invalid_rows: Number of rows that cannot be used, by reason.
        evaluation_prompt_rows: Rows left out since an evaluation asks their prompt.
        held_out: Pairs kept aside to measure a trained judge; None where no judge is trained on the examples.
        needed_length: `max_length` that would keep 99 % (p99) and all (p100) of the examples; empty in records of
            older versions.
        unread_columns: Columns of the rows that the format does not read.
        merged_prompts: Examples whose prompt ends in a token that merges with the response.
    """

    rows: int
    invalid_rows: dict[str, int]
    evaluation_prompt_rows: int
    examples: int
    held_out: int | None = None
    needed_length: dict[str, int] = {}
    unread_columns: tuple[str, ...] = ()
    merged_prompts: int = 0


class InspectionMetrics(Metrics):
    """Sources and prompts that were inspected, and what to know about them before anything is trained.

    Attributes:
        positions: Positions of the model; None if it states no limit.
        notes: Sentences for the user, such as that the template opens a thought at the end of a prompt.
    """

    sources: int
    prompts: int
    positions: int | None
    notes: tuple[str, ...] = ()


class ReferenceMetrics(Metrics):
    """Examples scored, their tokens, and the padding tokens that were computed beside them."""

    examples: int
    tokens: int
    padding: int

    def joined(self, other: ReferenceMetrics) -> ReferenceMetrics:
        """The metrics of two shards together."""
        return ReferenceMetrics(**_sums(self, other))


class Throughput(Metrics):
    """Speed and memory of the updates that this run made, all workers together.

    Attributes:
        training_seconds: From the first forward pass to the end.
        tokens: Tokens of the texts, each answer's with its prompt.
        computed_tokens: Tokens that the model computed, without padding: fewer than `tokens` where answers are packed
            with their prompt once. None in records of older versions, which computed `tokens`.
        padding_fraction: Padding / (computed tokens + padding).
        padded_because: Why the texts were padded instead of packed; None if they were packed.
        flops_per_second: (4 x parameters + 2 x trained parameters) x computed tokens / seconds; attention is left
            out.
        peak_memory_bytes: Of one accelerator, or of one process where there is none.
        peak_flops: Dense bfloat16 peak of one accelerator; None if unknown.
        mfu: `flops_per_second` / (accelerators x `peak_flops`).
    """

    training_seconds: float
    tokens: int
    padding_fraction: float
    tokens_per_second: float
    examples_per_second: float
    parameters: int
    flops_per_second: float
    peak_memory_bytes: int
    computed_tokens: int | None = None
    padded_because: str | None = None
    peak_flops: float | None = None
    mfu: float | None = None


class JudgeAccuracy(Metrics):
    """How often a trained judge prefers the chosen answer of held-out pairs (ties count half), and its calibration.

    Attributes:
        low, high: 95 % interval of the accuracy; None in records of older versions.
        temperature: P(win) = sigmoid(score difference / temperature), fitted on the held-out pairs.
        temperature_fitted: False where there were too few held-out pairs to fit it, so that it is 1.
        calibration_error: Expected calibration error at that temperature.
        calibration_low, calibration_high: Its 95 % interval; None in records of older versions.
        calibration_error_before: The same at temperature 1.
        reliability: (mean predicted probability, share won, pairs) of each bin of the reliability diagram at the fitted
            temperature.
    """

    held_out_pairs: int
    held_out_accuracy: float
    temperature: float
    calibration_error: float
    calibration_error_before: float
    reliability: tuple[tuple[float, float, int], ...]
    low: float | None = None
    high: float | None = None
    temperature_fitted: bool = True
    calibration_low: float | None = None
    calibration_high: float | None = None


class TrainMetrics(Metrics):
    """Course of a training step.

    Attributes:
        first_loss, final_loss: Loss of the first update; mean loss of the final ones, see `sacpo.steps.course.Course`.
        reward_accuracy, margin, chosen_logp_change, loss_moved, warnings: See `sacpo.steps.course.Course`.
        resumed: The run started from a checkpoint.
        start_seconds: Seconds before the first update, by part.
        reference_max_difference: Of precomputed and live reference log-probabilities, in nats; None if not compared.
        changed_weights: See `sacpo.steps.changed_weights`; None for adapters and in records of older versions.
        throughput: None if the run made no update.
    """

    updates: int
    examples_per_epoch: int
    first_loss: float
    final_loss: float
    resumed: bool
    start_seconds: dict[str, float]
    reward_accuracy: float | None = None
    margin: float | None = None
    chosen_logp_change: float | None = None
    loss_moved: bool = True
    warnings: tuple[str, ...] = ()
    reference_max_difference: float | None = None
    changed_weights: float | None = None
    throughput: Throughput | None = None
    judge: JudgeAccuracy | None = None


class GenerateMetrics(Metrics):
    """Answers and their tokens.

    Attributes:
        responses: Answers, without those that are missing.
        finished_fraction: Share of the answers that ended before the token limit.
        kl_to_sft: Estimate of KL(policy || SFT) in nats per answer; None where answers are not plain samples.
        missing: Answers that the endpoint of a served policy refused.
    """

    responses: int
    tokens: int
    finished_fraction: float
    kl_to_sft: float | None = None
    missing: int = 0


class JudgeMetrics(Metrics):
    """Verdicts and the calls that they took.

    Attributes:
        undecided: Verdicts that are unparsable or unavailable.
        refused: Those of them that the endpoint refused for their content or length.
        not_asked: Pairs of answers of which no verdict was asked for, since a race had stopped the policy.
        unanswered: Undecided verdicts of pairs of which an answer is missing, so that asking again cannot help.
    """

    verdicts: int
    calls: int
    undecided: int
    prompt_tokens: int
    completion_tokens: int
    refused: int = 0
    not_asked: int = 0
    unanswered: int = 0

    def joined(self, other: JudgeMetrics) -> JudgeMetrics:
        """The metrics of two shards together."""
        return JudgeMetrics(**_sums(self, other))


class RaceMetrics(Metrics):
    """Policies that were compared, and those of them that are not judged further from here on."""

    compared: int
    stopped: int

    @property
    def remark(self) -> str:
        """How many policies the race stopped."""
        return f"{self.stopped} of {self.compared} policies judged no further"


class Fooled(Metrics):
    """Canned pairs whose worse answer tries to talk the judge round.

    Attributes:
        fraction: Fraction of them in which the judge preferred that answer; a tie does not count.
        low, high: 95 % interval of the fraction.
        pairs: Pairs with a decided verdict.
        by_kind: The fraction for each kind of manipulation.
    """

    fraction: float
    low: float
    high: float
    pairs: int
    by_kind: dict[str, float]


class CanaryMetrics(JudgeMetrics):
    """Verdicts on canned pairs.

    Attributes:
        win_rate: Win rate of the better answers.
        low, high: 95 % interval of the win rate; None in records of older versions.
        decided_pairs: Pairs with a decided verdict.
        warnings: Reasons to doubt the judge that did not stop the sweep.
        order_inconsistency: Share of pairs whose verdict changed with the order of the answers; None for judges that
            score each answer by itself.
        fooled: How often the judge was talked round; None if it was not tried, or decided no such pair.
    """

    win_rate: float
    order_inconsistency: float | None
    low: float | None = None
    high: float | None = None
    decided_pairs: int = 0
    fooled: Fooled | None = None
    warnings: tuple[str, ...] = ()


def _sums(first: BaseModel, second: BaseModel) -> dict[str, Any]:
    """Field by field, the sum of two models of one type."""
    return {name: getattr(first, name) + getattr(second, name) for name in type(first).model_fields}
