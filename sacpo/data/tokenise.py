"""Turns examples into token ids, and renders the same texts for generation and judging.

A template is `chat`, the tokenizer's chat template, or a text that contains {prompt}; the response and the
end-of-sequence token follow the text. A prompt of several turns fills {prompt} with its first turn, and then each later
turn as `\\n\\nAssistant: ...` or `\\n\\nHuman: ...`: the template `\\n\\nHuman: {prompt}\\n\\nAssistant:` gives
hh-rlhf transcripts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

from sacpo.data.chat_templates import answer_opening, lost_turn, opened_thought, template_end
from sacpo.data.fields import PromptText
from sacpo.data.formats import special_tokens
from sacpo.errors import DataError, first_line
from sacpo.spaces.methods import ExampleShape

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

TOO_LONG = frozenset({"prompt fills max_length", "longer than max_length"})
"""Reasons for which an example is left out that a larger `max_length` removes."""

_IGNORED = -100
_SPEAKERS = {"user": "Human", "assistant": "Assistant", "system": "System"}


@dataclass
class Tally:
    """What is counted of the examples while they are tokenised.

    Attributes:
        lengths: Tokens of each example's prompt and its longest response.
        merged: Examples whose prompt ends in a token that merges with the response, so that training and generation
            differ there.
    """

    lengths: list[int] = field(default_factory=list)
    merged: int = 0


def render(prompt: PromptText, *, tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The text that a policy continues with its response; `encode` gives its token ids.

    Args:
        prompt: A text or chat messages.
        tokenizer: The policy's tokenizer.
        template: `chat`, or a text that contains {prompt}.

    Returns:
        The rendered prompt.
    """
    return _render([prompt], None, tokenizer, template)[0]


def conversation(prompt: PromptText, response: str, *, tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The text of a prompt and its response, as a reward model reads it; `encode` gives its token ids.

    Args:
        prompt: A text or chat messages.
        response: The assistant's answer.
        tokenizer: The reward model's tokenizer.
        template: `chat`, or a text that contains {prompt}.

    Returns:
        The same text that `tokenise` turns into token ids.
    """
    return _render([prompt], [response], tokenizer, template)[0]


def encode(texts: Sequence[str], *, tokenizer: PreTrainedTokenizerBase, template: str) -> list[list[int]]:
    """Token ids of the texts of `render` and `conversation`.

    A chat template writes the special tokens itself, so none are added to its texts. Other texts get the tokens that
    the tokenizer adds (such as BOS), except for an EOS at the end: it would end a prompt before its response, and a
    response would have two.

    Args:
        texts: Texts that were rendered with `template`.
        tokenizer: The tokenizer that they were rendered for.
        template: `chat`, or a text that contains {prompt}.

    Returns:
        One list of token ids per text.
    """
    if not texts:
        return []
    adds_special_tokens = template != "chat"
    # Prompts of preferences repeat, so each distinct text is tokenised once.
    unique = list(dict.fromkeys(texts))
    lists = _ids(unique, tokenizer, adds_special_tokens)
    if adds_special_tokens and _appends_eos(tokenizer):
        lists = [ids[:-1] for ids in lists]
    by_text: dict[str, list[int]] = dict(zip(unique, lists, strict=True))
    return [by_text[text] for text in texts]


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, adds_special_tokens: bool) -> list[list[int]]:
    """Token ids of texts, without the offsets, masks and copies that transformers makes for each text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.truncation or backend.padding or getattr(tokenizer, "split_special_tokens", False):
        encoding = tokenizer(texts, add_special_tokens=adds_special_tokens, return_attention_mask=False, verbose=False)
        lists: list[list[int]] = encoding["input_ids"]
        return lists
    return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=adds_special_tokens)]


def tokenise(
    examples: Sequence[dict[str, Any]],
    *,
    shape: ExampleShape,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_length: int,
    tally: Tally | None = None,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Turn examples into token ids. A response begins where the ids of prompt and conversation differ, as in TRL.

    Args:
        examples: Examples of `sacpo.data.preferences.convert`.
        shape: Shape of the examples.
        tokenizer: The policy's tokenizer.
        template: `chat`, or a text that contains {prompt}.
        max_length: Largest number of tokens of a prompt and its longest response; longer examples are left out, never
            truncated.
        tally: Gets what is counted of the examples that could be tokenised.

    Returns:
        The rows, and the number of examples left out by reason. Rows of `pairs` have prompt_ids, chosen_ids and
        rejected_ids; of `labelled` prompt_ids, completion_ids and label; of `demonstrations` input_ids and labels.

    Raises:
        DataError: the template is a text and the tokenizer has no end-of-sequence token.
    """
    if template != "chat" and tokenizer.eos_token is None:
        raise DataError(
            "the tokenizer has no end-of-sequence token, so with a text template responses would never end; "
            "set eos_token in the tokenizer's folder, or use the `chat` template"
        )
    fields = ("chosen", "rejected") if shape == "pairs" else ("completion",)
    examples, specials = _without_special_tokens(examples, fields, tokenizer)
    examples, texts, left_out = _rendered(examples, fields, tokenizer, template)
    left_out += specials
    encoded = encode(texts, tokenizer=tokenizer, template=template)
    count = len(examples)
    rows: list[dict[str, Any]] = []
    tally = tally or Tally()
    for i, example in enumerate(examples):
        prompt_alone, *conversations = encoded[i::count]
        start = min(_common_prefix(prompt_alone, ids) for ids in conversations)
        prompt_ids, responses = prompt_alone[:start], [ids[start:] for ids in conversations]
        tally.lengths.append(max(map(len, conversations)))
        reason = _reason(prompt_ids, responses, max_length)
        if reason is not None:
            left_out[reason] += 1
            continue
        tally.merged += start < len(prompt_alone)
        match shape:
            case "pairs":
                row = {"prompt_ids": prompt_ids, "chosen_ids": responses[0], "rejected_ids": responses[1]}
            case "labelled":
                row = {"prompt_ids": prompt_ids, "completion_ids": responses[0], "label": example["label"]}
            case "demonstrations":
                row = {"input_ids": conversations[0], "labels": [_IGNORED] * start + responses[0]}
            case _:
                assert_never(shape)
        rows.append(row)
    return rows, left_out


def _without_special_tokens(
    examples: Sequence[dict[str, Any]], fields: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[Sequence[dict[str, Any]], Counter[str]]:
    """The examples whose texts hold no special token as text, and the number of the others by token.

    A tokenizer reads a written `<|im_end|>` as the end of a turn, so a text of the data could end its own turn or
    begin another one.
    """
    written: Counter[str] = Counter()
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    pattern = special_tokens({*tokenizer.all_special_tokens, *added})
    if pattern is None or getattr(tokenizer, "split_special_tokens", False):
        return examples, written
    kept = []
    for example in examples:
        prompt = example["prompt"]
        texts = [prompt] if isinstance(prompt, str) else [turn["content"] for turn in prompt]
        match = next(filter(None, map(pattern.search, [*texts, *(example[field] for field in fields)])), None)
        if match is None:
            kept.append(example)
        else:
            written[f"special token {match[0]} in the text"] += 1
    return kept, written


def _rendered(
    examples: Sequence[dict[str, Any]], fields: Sequence[str], tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[Sequence[dict[str, Any]], list[str], Counter[str]]:
    """The examples that the template accepts, their texts, and the number of the others by reason.

    A chat template raises on turns that it does not know, such as a system message, with whichever error it likes, or
    leaves them out. All examples are rendered at once; only if one is refused is each of them tried by itself.
    """
    refused: Counter[str] = Counter()
    try:
        texts = _texts(examples, fields, tokenizer, template)
    except Exception:  # see above
        kept = []
        for example in examples:
            try:
                _texts([example], fields, tokenizer, template)
            except Exception as error:
                refused[f"refused by the chat template: {first_line(error)}"] += 1
            else:
                kept.append(example)
        examples, texts = kept, _texts(kept, fields, tokenizer, template)
    if template != "chat":
        return examples, texts, refused
    lost = [lost_turn(example["prompt"], text) for example, text in zip(examples, texts, strict=False)]
    if not any(lost):
        return examples, texts, refused
    refused.update(f"left out by the chat template: {role} message" for role in lost if role)
    whole = [example for example, role in zip(examples, lost, strict=True) if not role]
    return whole, _texts(whole, fields, tokenizer, template), refused


def _texts(
    examples: Sequence[dict[str, Any]], fields: Sequence[str], tokenizer: PreTrainedTokenizerBase, template: str
) -> list[str]:
    """Texts of all prompts, followed by those of the conversations with each field's responses."""
    prompts = [example["prompt"] for example in examples]
    texts = _render(prompts, None, tokenizer, template)
    for name in fields:
        texts += _render(prompts, [example[name] for example in examples], tokenizer, template)
    return texts


def whole_pairs(rows: pa.Table) -> pa.Table:
    """Pairs as whole sequences, as reward models learn from them.

    Args:
        rows: Rows of `tokenise` with the shape `pairs`.

    Returns:
        Rows with chosen_ids and rejected_ids, each starting with the prompt.
    """
    import pyarrow as pa

    prompts = rows["prompt_ids"].combine_chunks()
    names = ("chosen_ids", "rejected_ids")
    return pa.table({name: _joined_lists(prompts, rows[name].combine_chunks()) for name in names})


def _joined_lists(first: pa.ListArray, second: pa.ListArray) -> pa.ListArray:
    """Each list of the first array, followed by the list of the second one in the same place."""
    import numpy as np
    import pyarrow as pa

    lengths = np.stack([part.value_lengths().to_numpy() for part in (first, second)], axis=1)
    ends = np.cumsum(lengths.ravel())
    is_first = np.repeat(np.tile([True, False], len(first)), lengths.ravel())
    values = np.empty(len(is_first), np.int32)
    values[is_first], values[~is_first] = first.flatten().to_numpy(), second.flatten().to_numpy()
    return pa.ListArray.from_arrays(np.concatenate([[0], ends[1::2]]).astype(np.int32), values)


def _reason(prompt_ids: list[int], responses: list[list[int]], max_length: int) -> str | None:
    """Why an example is left out; None if it is kept."""
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
    # The usual case needs no Python loop over the tokens.
    if second[: len(first)] == first:
        return len(first)
    return next(i for i, token in enumerate(first) if second[i : i + 1] != [token])


def _render(
    prompts: Sequence[PromptText], responses: Sequence[str] | None, tokenizer: PreTrainedTokenizerBase, template: str
) -> list[str]:
    """Texts of prompts, or of conversations if there are responses."""
    if not prompts:
        return []
    if template == "chat":
        chats = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
        if responses is not None:
            answers = [{"role": "assistant", "content": response} for response in responses]
            chats = [[*chat, answer] for chat, answer in zip(chats, answers, strict=True)]
        texts: list[str] = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=responses is None)
        if responses is None:
            thought, opening = opened_thought(tokenizer), answer_opening(tokenizer)
            texts = [text.removesuffix(thought) + opening for text in texts]
        if responses is not None and template_end(tokenizer) is None:
            texts = [text + (tokenizer.eos_token or "") for text in texts]
        return texts
    filled = [template.replace("{prompt}", _transcript(prompt)) for prompt in prompts]
    if responses is None:
        return filled
    eos = tokenizer.eos_token or ""
    return [text + response + eos for text, response in zip(filled, responses, strict=True)]


def _transcript(prompt: PromptText) -> str:
    if isinstance(prompt, str):
        return prompt
    first, *later = prompt
    return "".join([first["content"], *(f"\n\n{_SPEAKERS[turn['role']]}: {turn['content']}" for turn in later)])


def _appends_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer adds an EOS at the end of a text."""
    eos = tokenizer.eos_token_id
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    # BOS and EOS can be the same token, so the last id is compared with and without special tokens.
    return eos is not None and len(ids) > len(bare) and ids[-1] == eos and bare[-1:] != [eos]
