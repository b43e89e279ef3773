"""Checks of a pretrained model before anything is trained on it, and the tokens that end its answers.

Each check stands for a fault that would otherwise end in wrong numbers or in an error deep inside a later step.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from sacpo.data.chat_templates import lost_message, template_end
from sacpo.data.tokenise import encode, render
from sacpo.errors import StepError, first_line

_PROMPT = "Hello"


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Refuse a tokenizer with ids that have no embedding.

    Raises:
        StepError: the tokenizer is larger than the embedding.
    """
    size = model.get_input_embeddings().num_embeddings
    outside = {token: i for token, i in tokenizer.get_vocab().items() if i >= size}
    if outside:
        special = {"pad": tokenizer.pad_token, "bos": tokenizer.bos_token, "eos": tokenizer.eos_token}
        named = [f"{role} token {token}" for role, token in special.items() if token in outside]
        shown = ", ".join(named) or f"{min(outside, key=outside.__getitem__)!r}"
        raise StepError(
            f"model.path {path}: the tokenizer has {max(outside.values()) + 1} tokens, the model {size}: {shown} "
            "has no embedding; resize the model's embeddings (resize_token_embeddings) and save it, or use the "
            "tokenizer that the model was trained with"
        )


def check_prompt_format(tokenizer: PreTrainedTokenizerBase, template: str, path: str) -> None:
    """Refuse a prompt template that is missing, fails, loses messages, or doubles the beginning-of-sequence token.

    Raises:
        StepError: as above.
    """
    if template == "chat" and not tokenizer.chat_template:
        raise StepError(
            f"model.prompt_template is `chat`, but the tokenizer of {path} has no chat template; "
            "give a text with {prompt} in it, for example 'USER: {prompt} ASSISTANT:'"
        )
    lost = ""
    try:
        if template == "chat":
            lost = lost_message(tokenizer)
        text = render(_PROMPT, tokenizer=tokenizer, template=template)
        ids = encode([text], tokenizer=tokenizer, template=template)[0]
    except Exception as error:
        raise StepError(
            f"model.path {path}: its chat template fails on a single user message "
            f"({type(error).__name__}: {first_line(error)}); give a text with {{prompt}} in model.prompt_template"
        ) from error
    if lost:
        raise StepError(
            f"model.path {path}: its chat template leaves the {lost}'s message out; it may want contents in parts, as "
            "templates of models that see images do: correct the template, or give a text with {prompt} in "
            "model.prompt_template"
        )
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise StepError(
            f"model.prompt_template begins with {tokenizer.bos_token}, which the tokenizer of {path} adds by itself, "
            "so every prompt would begin with two of them; leave it out of the template"
        )


def end_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase, template: str, path: str) -> list[int]:
    """Ids of the tokens that end an answer; training puts the first one at the end of a response.

    These are the special token that the chat template writes after an assistant's turn (Gemma's `<end_of_turn>`), the
    tokenizer's end-of-sequence token, and the list in the model's own `generation_config`.

    Raises:
        StepError: no token ends an answer.
    """
    end = template_end(tokenizer) if template == "chat" else None
    ids = [] if end is None else [end]
    declared = model.generation_config.eos_token_id
    for value in (tokenizer.eos_token_id, declared):
        ids += value if isinstance(value, list) else [] if value is None else [value]
    if not ids:
        raise StepError(f"model.path {path}: the tokenizer has no end-of-sequence token, so no answer could end")
    return list(dict.fromkeys(ids))
