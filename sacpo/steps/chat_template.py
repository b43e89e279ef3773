"""Fixes what a chat template renders: its variables and its date become part of the template.

The base model's folder holds the fixed template, so every later step, every day and every exported policy renders the
same text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from transformers import PreTrainedTokenizerBase

from sacpo.errors import StepError

_ANY_DATE_CALL = re.compile(r"strftime_now\s*\(")
_DATE_CALL = re.compile(r"strftime_now\(\s*(?P<quote>[\"'])(?P<format>.*?)(?P=quote)\s*\)")


def fix_chat_template(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any], today: date) -> None:
    """Write variables and a date into the tokenizer's chat template. Does nothing without a template.

    Args:
        tokenizer: Its template, or each of its named templates, is changed in place.
        variables: Variables that the template gets (transformers: `chat_template_kwargs`).
        today: The date that `strftime_now` returns in the template.

    Raises:
        StepError: a variable is none of the template's, so it would have no effect, or a date cannot be fixed.
    """
    template: Any = tokenizer.chat_template
    texts = list(template.values()) if isinstance(template, dict) else [template or ""]
    for name in variables:
        if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts):
            raise StepError(
                f"model.chat_template_kwargs: the chat template has no variable {name!r}, so it would have no effect; "
                "correct the name, or leave it out"
            )
    if isinstance(template, dict):
        tokenizer.chat_template = {name: _fixed(text, variables, today) for name, text in template.items()}
    elif template:
        tokenizer.chat_template = _fixed(template, variables, today)


def _fixed(template: str, variables: Mapping[str, Any], today: date) -> str:
    dated = _DATE_CALL.sub(lambda match: json.dumps(today.strftime(match["format"])), template)
    if _ANY_DATE_CALL.search(dated):
        raise StepError(
            "model.prompt_template: the chat template calls strftime_now with a computed format, so its date cannot be "
            "fixed and every day would render another text; write the format as text into the template"
        )
    settings = "".join(f"{{%- set {name} = {_literal(value)} -%}}" for name, value in variables.items())
    return settings + dated


def _literal(value: Any) -> str:
    """A value as Jinja writes it."""
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)
