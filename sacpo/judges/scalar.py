"""Judges that score each answer by itself: the synthetic world's gold values, and reward or cost models.

Comparing scores has no presentation order, so each pair has one verdict.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sacpo.judges.verdicts import Judge, Outcome, Pair, Verdict

Score = Callable[[list[tuple[str, str]]], list[float]]
"""Scores (prompt, answer) pairs; higher is better, and what cannot be scored is not a number."""


def outcome(score: float, baseline: float, tie_margin: float) -> Outcome:
    """What a pair of scores says; higher is better. A score that is not a number is no verdict."""
    difference = score - baseline
    if difference != difference:
        return "unavailable"
    if abs(difference) <= tie_margin:
        return "tie"
    return "win" if difference > 0 else "loss"


def by_score(score: Score, *, tie_margin: float = 0.0, temperature: float | None = None) -> Judge:
    """A judge that compares two answers by a score.

    Args:
        score: Scores answers.
        tie_margin: Scores no further apart are a tie.
        temperature: Where P(win) = sigmoid(difference / temperature) was fitted on held-out pairs.
    """

    def judge(pairs: list[Pair]) -> list[Verdict]:
        started = time.monotonic()
        ours = score([(pair.prompt, pair.policy) for pair in pairs])
        theirs = score([(pair.prompt, pair.baseline) for pair in pairs])
        latency = (time.monotonic() - started) / max(1, len(pairs))
        return [
            Verdict(i, "none", 0, outcome(a, b, tie_margin), f"{a:.6g} {b:.6g}", latency, p_win=p_win(a - b))
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
        ]

    def p_win(difference: float) -> float | None:
        if temperature is None or math.isnan(difference):
            return None
        return (1 + math.tanh(difference / (2 * temperature))) / 2

    return judge


def gold(criterion: str) -> Score:
    """The synthetic world's own scores."""
    from sacpo.synthetic.world import gold_score

    return lambda answers: [gold_score(prompt, answer, criterion) for prompt, answer in answers]


def reward_model(
    path: str | Path, *, revision: str | None, sign: int, template: str, max_length: int, batch_size: int = 32
) -> Score:
    """A sequence-classification model with one output, from a folder or the hub.

    Args:
        path: Folder or hub id.
        revision: Commit of the hub repository.
        sign: 1 if a higher output is better, -1 if it is worse.
        template: `chat`, or text with {prompt}.
        max_length: Tokens; a longer text is not cut but scored as not a number, so it becomes no verdict.
        batch_size: Texts scored at once.

    Raises:
        StepError: the model has not exactly one output.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from sacpo.data.tokenise import conversation, encode
    from sacpo.errors import StepError

    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision or "main")
    model: Any = AutoModelForSequenceClassification.from_pretrained(path, revision=revision or "main", dtype="auto")
    if model.config.num_labels != 1:
        raise StepError(f"the judge {path} has {model.config.num_labels} outputs; a reward or cost model has one")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        texts = [conversation(p, r, tokenizer=tokenizer, template=template) for p, r in pairs]
        ids = encode(texts, tokenizer=tokenizer, template=template)
        fit = sorted((i for i in range(len(ids)) if len(ids[i]) <= max_length), key=lambda i: len(ids[i]))
        scores = [float("nan")] * len(pairs)
        for start in range(0, len(fit), batch_size):
            batch = fit[start : start + batch_size]
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt").to(model.device)
            with torch.no_grad():
                outputs = model(**inputs).logits[:, 0].float().tolist()
            for i, value in zip(batch, outputs, strict=True):
                scores[i] = sign * value
        return scores

    return score
