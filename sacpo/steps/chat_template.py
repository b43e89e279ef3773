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

_DATE_CALL = re.compile(r"strftime_now\(\s*(?P<quote>[\"'])(?P<format>.*?)(?P=quote)\s*\)")


def fix_chat_template(tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any], today: date) -> None:
    """Write variables and a date into the tokenizer's chat template. Does nothing without a template.

    Args:
        tokenizer: Its template, or each of its named templates, is changed in place.
        variables: Variables that the template gets (transformers: `chat_template_kwargs`).
        today: The date that `strftime_now` returns in the template.
    """
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        tokenizer.chat_template = {name: _fixed(text, variables, today) for name, text in template.items()}
    elif template:
        tokenizer.chat_template = _fixed(template, variables, today)


def _fixed(template: str, variables: Mapping[str, Any], today: date) -> str:
    dated = _DATE_CALL.sub(lambda match: json.dumps(today.strftime(match["format"])), template)
    settings = "".join(f"{{%- set {name} = {_literal(value)} -%}}" for name, value in variables.items())
    return settings + dated


def _literal(value: Any) -> str:
    """A value as Jinja writes it."""
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)
