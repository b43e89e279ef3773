"""Examples as token ids, and the same texts for answering and judging.

A template is `chat`, the tokenizer's chat template, or a text with {prompt} in it, which is followed by the response
and the end-of-sequence token. A prompt of several turns enters a text template as `first turn`, then each later one as
`\\n\\nAssistant: ...` or `\\n\\nHuman: ...`: in `\\n\\nHuman: {prompt}\\n\\nAssistant:` that is an hh-rlhf transcript.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sacpo.data.preferences import Prompt, Shape
from sacpo.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)
_IGNORED = -100
_SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}


def render(prompt: Prompt, *, tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The text from which a response is generated; `encode` gives its ids.

    Args:
        prompt: A text or chat messages.
        tokenizer: The policy's tokenizer.
        template: `chat`, or a text with {prompt} in it.

    Returns:
        The rendered prompt.
    """
    return _render([prompt], None, tokenizer, template)[0]


def conversation(prompt: Prompt, response: str, *, tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The text of a prompt and its response, as a reward model reads it; `encode` gives its ids.

    Args:
        prompt: A text or chat messages.
        response: The assistant's answer.
        tokenizer: The reward model's tokenizer.
        template: `chat`, or a text with {prompt} in it.

    Returns:
        The same text that `tokenise` makes into ids.
    """
    return _render([prompt], [response], tokenizer, template)[0]


def encode(texts: Sequence[str], *, tokenizer: PreTrainedTokenizerBase, template: str) -> list[list[int]]:
    """Token ids of texts of `render` and `conversation`.

    A chat template writes the special tokens itself, so none are added to its texts. Other texts get what the tokenizer
    adds (such as BOS), except an EOS at the end: it would close a prompt before its answer and
    double that of a response.

    Args:
        texts: Rendered with `template`.
        tokenizer: The tokenizer that they were rendered for.
        template: `chat`, or a text with {prompt} in it.

    Returns:
        One list of ids a text.
    """
    if not texts:
        return []
    special = template != "chat"
    # A text that is there several times, as prompts of preferences are, is tokenised once.
    unique = list(dict.fromkeys(texts))
    lists = tokenizer(unique, add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"]
    if special and _appends_eos(tokenizer):
        lists = [ids[:-1] for ids in lists]
    by_text: dict[str, list[int]] = dict(zip(unique, lists, strict=True))
    return [by_text[text] for text in texts]


def tokenise(
    examples: Sequence[dict[str, Any]],
    *,
    shape: Shape,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_length: int,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Turn examples into token ids. A response begins where the prompt's ids and the whole's ids part, as in TRL.

    Args:
        examples: What `preferences.convert` gave.
        shape: Their shape.
        tokenizer: The policy's tokenizer.
        template: `chat`, or a text with {prompt} in it.
        max_length: Most tokens of a prompt and its longest response; longer examples are left out, never cut.

    Returns:
        The rows, and the count of examples left out by reason. Rows of `pairs` have prompt_ids, chosen_ids and
        rejected_ids; of `labelled` prompt_ids, completion_ids and label; of `demonstrations` input_ids and labels.

    Raises:
        DataError: if a text template meets a tokenizer without an end-of-sequence token.
    """
    if template != "chat" and tokenizer.eos_token is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token, so with a text template no response would ever end; "
            "set eos_token in the tokenizer's folder, or use the `chat` template"
        )
    fields = ("chosen", "rejected") if shape == "pairs" else ("completion",)
    prompts = [example["prompt"] for example in examples]
    texts = _render(prompts, None, tokenizer, template)
    for field in fields:
        texts += _render(prompts, [example[field] for example in examples], tokenizer, template)
    encoded = encode(texts, tokenizer=tokenizer, template=template)
    count = len(examples)
    rows: list[dict[str, Any]] = []
    left_out: Counter[str] = Counter()
    shortened = 0
    for i, example in enumerate(examples):
        alone, *wholes = encoded[i::count]
        start = min(_common_prefix(alone, whole) for whole in wholes)
        prompt_ids, responses = alone[:start], [whole[start:] for whole in wholes]
        reason = _reason(prompt_ids, responses, max_length)
        if reason is not None:
            left_out[reason] += 1
            continue
        shortened += start < len(alone)
        if shape == "pairs":
            rows.append({"prompt_ids": prompt_ids, "chosen_ids": responses[0], "rejected_ids": responses[1]})
        elif shape == "labelled":
            rows.append({"prompt_ids": prompt_ids, "completion_ids": responses[0], "label": example["label"]})
        else:
            rows.append({"input_ids": wholes[0], "labels": [_IGNORED] * start + responses[0]})
    if shortened:
        _LOG.warning(
            "%d of %d prompts end in tokens that merge with their response, so training and answering differ there; "
            "let the prompt template end where a token ends",
            shortened,
            count,
        )
    return rows, left_out


def whole_pairs(rows: Iterable[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """Pairs as whole sequences, which reward models learn from.

    Args:
        rows: What `tokenise` gave for `pairs`.

    Returns:
        Rows with chosen_ids and rejected_ids, each beginning with the prompt.
    """
    return [{key: row["prompt_ids"] + row[key] for key in ("chosen_ids", "rejected_ids")} for row in rows]


def _reason(prompt_ids: list[int], responses: list[list[int]], max_length: int) -> str | None:
    if len(prompt_ids) >= max_length:
        return "prompt fills max_length"
    if len(prompt_ids) + max(map(len, responses)) > max_length:
        return "longer than max_length"
    if not all(responses):
        return "empty response after tokenisation"
    if len(responses) == 2 and responses[0] == responses[1]:
        return "identical responses after tokenisation"
    return None


def _common_prefix(first: list[int], second: list[int]) -> int:
    # The usual case, without a Python loop over the tokens.
    if second[: len(first)] == first:
        return len(first)
    return next(i for i, token in enumerate(first) if second[i : i + 1] != [token])


def _render(
    prompts: Sequence[Prompt], responses: Sequence[str] | None, tokenizer: PreTrainedTokenizerBase, template: str
) -> list[str]:
    if not prompts:
        return []
    if template == "chat":
        chats = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
        if responses is not None:
            answers = [{"role": "assistant", "content": response} for response in responses]
            chats = [[*chat, answer] for chat, answer in zip(chats, answers, strict=True)]
        texts: list[str] = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=responses is None)
        return texts
    filled = [template.replace("{prompt}", _transcript(prompt)) for prompt in prompts]
    if responses is None:
        return filled
    eos = tokenizer.eos_token or ""
    return [text + response + eos for text, response in zip(filled, responses, strict=True)]


def _transcript(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    first, *later = prompt
    return "".join([first["content"], *(f"\n\n{_SPEAKERS[turn['role']]}: {turn['content']}" for turn in later)])


def _appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    eos = tokenizer.eos_token_id
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    # With BOS and EOS the same token, an EOS that is added ends the ids and the bare ids do not.
    return eos is not None and len(ids) > len(bare) and ids[-1] == eos and bare[-1:] != [eos]
