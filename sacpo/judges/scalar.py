"""Judges that score each answer by itself: the synthetic world's gold scores, and reward or cost models.

Scores do not depend on a presentation order, so each pair has one verdict.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sacpo.data.batching import batches_by_length, with_pad_token
from sacpo.data.model_cache import MODEL_CACHE
from sacpo.errors import StepError
from sacpo.judges.verdicts import AnswerPair, JudgeFunction, Outcome, Verdict, outcome_of

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


def by_score(
    score: Score,
    *,
    tie_margin: float = 0.0,
    temperature: float | None = None,
    probabilities: bool = False,
    unscored: str = "no score",
) -> JudgeFunction:
    """A judge that compares the scores of two answers.

    Args:
        score: Scores answers.
        tie_margin: Largest distance between scores that counts as a tie.
        temperature: Temperature of P(win) = sigmoid(difference / temperature), fitted on held-out pairs; None if the
            scores are not calibrated.
        probabilities: A verdict's score is P(win) of the Bradley-Terry model, at temperature 1 if the scores are not
            calibrated; otherwise that of its outcome.
        unscored: Reason why an answer can have no score.
    """

    def judge(pairs: list[AnswerPair]) -> list[Verdict]:
        started = time.monotonic()
        policy_scores = score([(pair.prompt, pair.policy) for pair in pairs])
        baseline_scores = score([(pair.prompt, pair.baseline) for pair in pairs])
        latency = (time.monotonic() - started) / max(1, len(pairs))
        return [verdict(i, a, b, latency) for i, (a, b) in enumerate(zip(policy_scores, baseline_scores, strict=True))]

    def verdict(i: int, policy: float, baseline: float, latency: float) -> Verdict:
        difference = policy - baseline
        calibrated = None if temperature is None or math.isnan(difference) else win_probability(difference, temperature)
        raw = describe(policy, baseline)
        if not probabilities or math.isnan(difference):
            return Verdict(i, "none", 0, outcome(policy, baseline, tie_margin), raw, latency, p_win=calibrated)
        soft = win_probability(difference, temperature or 1.0)
        return Verdict(i, "none", 0, outcome_of(soft), raw, latency, p_win=calibrated, score=soft)

    def describe(policy: float, baseline: float) -> str:
        scores = f"{policy:.6g} {baseline:.6g}"
        return f"{unscored}: {scores}" if math.isnan(policy - baseline) else scores

    return judge


def win_probability(difference: float, temperature: float = 1.0) -> float:
    """P(win) = sigmoid(difference / temperature), the Bradley-Terry model (1952) of two scores.

    Args:
        difference: Score of the policy's answer minus that of the baseline's; finite.
        temperature: Above 0.
    """
    return (1 + math.tanh(difference / (2 * temperature))) / 2


def gold(criterion: str) -> Score:
    """The gold scores of the synthetic world for a criterion."""
    from sacpo.synthetic.world import gold_score

    return lambda answers: [gold_score(prompt, answer, criterion) for prompt, answer in answers]


TOO_LONG = "longer than max_length or the model's context"
"""Why a reward model gives an answer no score."""


def reward_model(
    path: str | Path,
    *,
    revision: str | None,
    sign: int,
    template: str,
    max_length: int,
    output: int | None = None,
    batch_size: int = 32,
) -> Score:
    """Load a sequence-classification model from a folder or the hub.

    Args:
        path: Folder or hub id.
        revision: Commit of the hub repository.
        sign: 1 if a higher output is better, -1 if a lower output is better.
        template: `chat`, or a text that contains {prompt}; the answer stands where the text says {response}, or follows
            the text.
        max_length: Largest number of tokens of a text. A text that is longer, or longer than the model's context, is
            not truncated: its score is NaN.
        output: Index of the output that is the score; None for a model with one output.
        batch_size: Texts scored in one forward pass.

    Returns:
        A function that scores (prompt, answer) pairs.

    Raises:
        StepError: the model has several outputs and none was chosen, the checkpoint lacks weights, or its chat template
            is missing or leaves the answer out.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from sacpo.data.pretrained import check_weights
    from sacpo.data.tokenise import encode

    tokenizer = with_pad_token(AutoTokenizer.from_pretrained(path, revision=revision or "main"))
    _check_template(tokenizer, template, path)

    def load() -> Any:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, revision=revision or "main", dtype="auto", output_loading_info=True
        )
        check_weights(info, f"the judge {path}")
        return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    is_folder = Path(path).is_dir()  # a branch on the hub may have moved on
    model = MODEL_CACHE.get([Path(path)], "reward model", load) if is_folder else load()
    column = _output_index(model.config, output, path)
    limit = min(max_length, _context(model.config))
    model.config.pad_token_id = tokenizer.pad_token_id

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        texts = [_text(prompt, answer, tokenizer, template) for prompt, answer in pairs]
        ids = encode(texts, tokenizer=tokenizer, template=template)
        positions = [i for i in range(len(ids)) if len(ids[i]) <= limit]
        scores = [float("nan")] * len(pairs)
        for batch in batches_by_length([len(ids[i]) for i in positions], batch_size):
            members = [positions[i] for i in batch]
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in members]}, return_tensors="pt").to(model.device)
            with torch.no_grad():
                outputs = model(**inputs).logits[:, column].float().tolist()
            for i, value in zip(members, outputs, strict=True):
                scores[i] = sign * value
        return scores

    return score


def _text(prompt: str, answer: str, tokenizer: Any, template: str) -> str:
    """The text that a reward model scores."""
    from sacpo.data.tokenise import conversation

    if "{response}" not in template:
        return conversation(prompt, answer, tokenizer=tokenizer, template=template)
    texts = {"{prompt}": prompt, "{response}": answer}
    filled = re.sub(r"\{prompt\}|\{response\}", lambda match: texts[match[0]], template)
    eos = tokenizer.eos_token or ""
    return filled if filled.endswith(eos) else filled + eos


def _check_template(tokenizer: Any, template: str, path: str | Path) -> None:
    """Raises StepError if no text of a prompt and an answer can be made by the template."""
    way_out = "give prompt_template, a text that contains {prompt} and {response}, as the model's card describes it"
    if template == "chat" and not tokenizer.chat_template:
        raise StepError(f"the judge {path} has no chat template; {way_out}")
    mark = "Good"
    try:
        text = _text("Hello", mark, tokenizer, template)
    except Exception as error:  # whatever a chat template raises
        raise StepError(f"the chat template of the judge {path} fails ({error}); {way_out}") from None
    if mark not in text:
        raise StepError(f"the chat template of the judge {path} leaves the answer out; {way_out}")


def _output_index(config: Any, output: int | None, path: str | Path) -> int:
    """Index of the output that is the score.

    Raises:
        StepError: there are several outputs and none was chosen, or there is no output of this index.
    """
    count = int(config.num_labels)
    if output is None and count == 1:
        return 0
    names = ", ".join(f"{i} ({config.id2label.get(i, 'unnamed')})" for i in range(min(count, 20)))
    if output is None:
        raise StepError(
            f"the judge {path} has {count} outputs, so which of them is the score is unknown; set output to the index "
            f"of one of them: {names}; or give a model with num_labels = 1"
        )
    if output >= count:
        raise StepError(f"the judge {path} has no output {output}; set output to the index of one of them: {names}")
    return output


def _context(config: Any) -> float:
    """Largest number of tokens that the model's positions allow; infinite if the configuration states none."""
    text_config = config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return math.inf
    # RoBERTa and its relatives number their positions from the padding token's id + 1.
    is_shifted = "roberta" in str(text_config.model_type) or text_config.model_type in ("camembert", "longformer")
    return positions - (text_config.pad_token_id or 0) - 1 if is_shifted else positions
