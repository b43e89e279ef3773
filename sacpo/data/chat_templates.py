"""What a tokenizer's chat template writes around an answer, and whether it writes the messages that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sacpo.data.fields import PromptText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION, _ANSWER = "Kumquat", "Good"  # texts that no template changes or writes by itself
_TURNS = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]


def opened_thought(tokenizer: PreTrainedTokenizerBase) -> str:
    """Text that the chat template writes at the end of a prompt and not before an assistant's turn, such as `<think>`.

    Answers would begin inside a thought, while training puts the response where the thought would be. A prompt is
    rendered without this text, so that a policy is asked as it is trained.
    """
    asked, whole = _asked(tokenizer, True), _whole(tokenizer)
    same = next((i for i, (a, b) in enumerate(zip(asked, whole, strict=False)) if a != b), min(len(asked), len(whole)))
    rest = asked[same:]
    return rest if rest.strip() else ""


def answer_opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """Text before an assistant's turn that a template without a generation prompt leaves out of every prompt.

    A policy would have to write it, such as `<|assistant|>`, and judges would read it as part of the answer. A prompt
    is rendered with this text.
    """
    asked, before = _asked(tokenizer, True), _whole(tokenizer).partition(_ANSWER)[0]
    if asked != _asked(tokenizer, False) or not before.startswith(asked):
        return ""
    opening = before[len(asked) :]
    return opening if opening.strip() else ""


def template_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the special token that the chat template writes after an assistant's turn, such as `<|im_end|>`.

    Args:
        tokenizer: A tokenizer with a chat template.

    Returns:
        None if the template writes none. The end-of-sequence token then ends a response, as with a text template.
    """
    tail = tokenizer(_whole(tokenizer).rpartition(_ANSWER)[2], add_special_tokens=False, verbose=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return next((token for token in tail if token in special), None)


def lost_message(tokenizer: PreTrainedTokenizerBase) -> str:
    """Whose message the chat template does not write, `user` or `assistant`; empty if it writes both.

    A template that wants contents in parts, as many of models that see images do, loses a content that is a text.
    """
    whole = _whole(tokenizer)
    return next((turn["role"] for turn in _TURNS if turn["content"] not in whole), "")


def lost_turn(prompt: PromptText, text: str) -> str:
    """The role of the first turn of a prompt that is not in its rendered text; empty if all are.

    Some templates leave a system message out without a word, others all turns but the last. Turns of the assistant are
    not looked for, since templates leave the thoughts in them out.
    """
    turns: Sequence[dict[str, str]] = [] if isinstance(prompt, str) else prompt
    asked = (turn for turn in turns if turn["role"] != "assistant")
    return next((turn["role"] for turn in asked if turn["content"].strip() not in text), "")


def _asked(tokenizer: PreTrainedTokenizerBase, with_opening: bool) -> str:
    text: str = tokenizer.apply_chat_template(_TURNS[:1], tokenize=False, add_generation_prompt=with_opening)
    return text


def _whole(tokenizer: PreTrainedTokenizerBase) -> str:
    text: str = tokenizer.apply_chat_template(_TURNS, tokenize=False)
    return text
