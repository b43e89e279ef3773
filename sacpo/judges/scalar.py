"""Judges that score each answer by itself: the synthetic world's gold scores, and reward or cost models.

Scores do not depend on a presentation order, so each pair has one verdict.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sacpo.data.batching import batches_by_length, with_pad_token
from sacpo.errors import StepError
from sacpo.judges.verdicts import AnswerPair, JudgeFunction, Outcome, Verdict

Score = Callable[[list[tuple[str, str]]], list[float]]
"""Scores (prompt, answer) pairs. A higher score is better; NaN means that an answer cannot be scored."""


def outcome(score: float, baseline: float, tie_margin: float) -> Outcome:
    """Outcome of a comparison of two scores.

    Args:
        score: Score of the policy's answer; a higher score is better.
        baseline: Score of the baseline's answer.
        tie_margin: Largest distance between scores that counts as a tie.

    Returns:
        The outcome for the policy; `unavailable` if a score is NaN.
    """
    difference = score - baseline
    if math.isnan(difference):
        return "unavailable"
    if abs(difference) <= tie_margin:
        return "tie"
    return "win" if difference > 0 else "loss"


def by_score(score: Score, *, tie_margin: float = 0.0, temperature: float | None = None) -> JudgeFunction:
    """A judge that compares the scores of two answers.

    Args:
        score: Scores answers.
        tie_margin: Largest distance between scores that counts as a tie.
        temperature: Temperature of P(win) = sigmoid(difference / temperature), fitted on held-out pairs; None if the
            scores are not calibrated.
    """

    def judge(pairs: list[AnswerPair]) -> list[Verdict]:
        started = time.monotonic()
        policy_scores = score([(pair.prompt, pair.policy) for pair in pairs])
        baseline_scores = score([(pair.prompt, pair.baseline) for pair in pairs])
        latency = (time.monotonic() - started) / max(1, len(pairs))
        return [
            Verdict(i, "none", 0, outcome(a, b, tie_margin), f"{a:.6g} {b:.6g}", latency, p_win=p_win(a - b))
            for i, (a, b) in enumerate(zip(policy_scores, baseline_scores, strict=True))
        ]

    def p_win(difference: float) -> float | None:
        if temperature is None or math.isnan(difference):
            return None
        return (1 + math.tanh(difference / (2 * temperature))) / 2

    return judge


def gold(criterion: str) -> Score:
    """The gold scores of the synthetic world for a criterion."""
    from sacpo.synthetic.world import gold_score

    return lambda answers: [gold_score(prompt, answer, criterion) for prompt, answer in answers]


def reward_model(
    path: str | Path, *, revision: str | None, sign: int, template: str, max_length: int, batch_size: int = 32
) -> Score:
    """Load a sequence-classification model with one output, from a folder or the hub.

    Args:
        path: Folder or hub id.
        revision: Commit of the hub repository.
        sign: 1 if a higher output is better, -1 if a lower output is better.
        template: `chat`, or a text that contains {prompt}.
        max_length: Largest number of tokens of a text. A longer text is not truncated: its score is NaN.
        batch_size: Texts scored in one forward pass.

    Returns:
        A function that scores (prompt, answer) pairs.

    Raises:
        StepError: the model has not exactly one output, or the checkpoint lacks weights.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from sacpo.data.pretrained import check_weights
    from sacpo.data.tokenise import conversation, encode

    tokenizer = with_pad_token(AutoTokenizer.from_pretrained(path, revision=revision or "main"))
    model: Any
    model, info = AutoModelForSequenceClassification.from_pretrained(
        path, revision=revision or "main", dtype="auto", output_loading_info=True
    )
    check_weights(info, f"the judge {path}")
    if model.config.num_labels != 1:
        raise StepError(
            f"the judge {path} has {model.config.num_labels} outputs, but a reward or cost model has exactly one; "
            "give a sequence-classification model with num_labels = 1"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        texts = [conversation(prompt, answer, tokenizer=tokenizer, template=template) for prompt, answer in pairs]
        ids = encode(texts, tokenizer=tokenizer, template=template)
        positions = [i for i in range(len(ids)) if len(ids[i]) <= max_length]
        scores = [float("nan")] * len(pairs)
        for batch in batches_by_length([len(ids[i]) for i in positions], batch_size):
            members = [positions[i] for i in batch]
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in members]}, return_tensors="pt").to(model.device)
            with torch.no_grad():
                outputs = model(**inputs).logits[:, 0].float().tolist()
            for i, value in zip(members, outputs, strict=True):
                scores[i] = sign * value
        return scores

    return score
