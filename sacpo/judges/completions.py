"""Reads the body of a chat completion: its text, why it ended, and the tokens that the endpoint counted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sacpo.judges.streams import read_body
from sacpo.judges.token_probabilities import Token, read_tokens

_FILTERED = frozenset(
    {"content_filter", "refusal", "safety", "prohibited_content", "blocklist", "spii", "recitation", "sensitive"}
)
"""Values of `finish_reason` that mean that the reply was withheld or cut by a filter."""
_AT_THE_LIMIT = frozenset({"length", "max_tokens", "model_length", "max_output_tokens"})
"""Values that mean that the reply reached the limit of tokens."""
_BROKEN_OFF = re.compile(
    "abort|cancel|error|time|interrupt|insufficient|incomplete|exceed|trunc|malformed|limit|length|max_", re.I
)
"""Other values that mean that the reply was not written to its end."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of a message that hold the model's thoughts."""


@dataclass(frozen=True)
class Completion:
    """A reply with status 200.

    Attributes:
        content: Text of the message, without thoughts, or the arguments of a tool that it calls; else empty.
        thoughts: The model's thoughts, as far as the endpoint separates them.
        refusal: The endpoint's words if it refused to answer; else empty.
        finish: Why the reply ended, in the endpoint's words.
        cut: The reply ended at the limit of tokens.
        broken_off: The reply was not written to its end for another reason.
        prompt_tokens: Prompt tokens that the endpoint counted; 0 if it counted none.
        completion_tokens: The same for the reply, thoughts included.
        model: Name of the model in the reply.
        fingerprint: The reply's `system_fingerprint`.
        tokens: The reply's tokens with their probabilities; None if the endpoint gave none.
    """

    content: str
    thoughts: str
    refusal: str
    finish: str
    cut: bool
    broken_off: bool
    prompt_tokens: int
    completion_tokens: int
    model: str | None
    fingerprint: str | None
    tokens: list[Token] | None


def printable(text: str) -> str:
    """The text with `?` for every character that cannot be written as UTF-8 (a surrogate without its partner)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_completion(text: str) -> Completion:
    """Read a body.

    Raises:
        ValueError: the body is not a chat completion.
    """
    try:
        body = read_body(text)
        choice = body["choices"][0]
        message = choice["message"]
        if not isinstance(message, dict):
            raise TypeError("the message is not an object")
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a chat completion: {error}") from None
    content, refused_part = _text(message.get("content"))
    content = content if content.strip() else _tool_arguments(message)
    finish = printable(str(choice.get("finish_reason") or "").lower())
    is_filtered = finish in _FILTERED
    refusal = message.get("refusal") or refused_part
    if not refusal and is_filtered:
        refusal = f"finish_reason {finish}" + (f": {content}" if content else "")
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Completion(
        content=printable(content),
        thoughts=printable(next((t for name in _THOUGHTS if (t := _text(message.get(name))[0])), _details(message))),
        refusal=printable(str(refusal)) if refusal else "",
        finish=finish,
        cut=finish in _AT_THE_LIMIT,
        broken_off=is_filtered or (finish not in _AT_THE_LIMIT and _BROKEN_OFF.search(finish) is not None),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        model=_name(body.get("model")),
        fingerprint=_name(body.get("system_fingerprint")),
        tokens=read_tokens(choice),
    )


def embedded_error(text: str) -> tuple[int | None, str] | None:
    """Status and text of an error that came with status 200; None if the body holds none.

    The status is None if the error does not name one. A JSON object that is no completion is such an error.
    """
    try:
        body = read_body(text)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = body.get("error") or choice.get("error")
    if not error:
        if choices:
            return None
        is_blocked = body.get("prompt_feedback") or body.get("promptFeedback")
        return (400, f"content_filter: {json.dumps(body)}") if is_blocked else (None, text)
    code = error.get("code") or error.get("status") if isinstance(error, dict) else None
    is_status = isinstance(code, int | str) and str(code).isdigit() and 400 <= int(code) < 600
    return int(code) if is_status else None, json.dumps(error)  # type: ignore[arg-type]


def _tool_arguments(message: dict[str, Any]) -> str:
    """The arguments of the first tool that a message calls: where servers force a format by a tool, the verdict."""
    calls = message.get("tool_calls")
    call = calls[0] if isinstance(calls, list) and calls else {"function": message.get("function_call")}
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    return arguments if isinstance(arguments, str) else json.dumps(arguments) if arguments else ""


def _details(message: Mapping[str, Any]) -> str:
    """Thoughts in OpenRouter's parts, `reasoning_details`: a text or a summary each."""
    details = message.get("reasoning_details")
    parts = [part for part in details if isinstance(part, dict)] if isinstance(details, list) else []
    return "".join(str(part.get("text") or part.get("summary") or "") for part in parts)


def _text(content: Any) -> tuple[str, str]:
    """The text of a message's content, which can come in parts, and the text of parts that are refusals."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, dict):
        if "verdict" in content:  # a proxy that decoded the reply
            return json.dumps(content), ""
        content = [content]
    if not isinstance(content, list):
        return str(content), ""
    texts, refusals = [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            if part.get("type") == "refusal":
                refusals.append(str(part.get("refusal") or part.get("text") or ""))
            elif part.get("type", "text") in ("text", "output_text"):
                text = part.get("text")
                texts.append(str(text.get("value", "")) if isinstance(text, dict) else str(text or ""))
    return "".join(texts), "".join(refusals)


def _count(value: Any) -> int:
    """A number of tokens; 0 for anything else."""
    try:
        return max(0, int(value))
    except (ValueError, TypeError, OverflowError):
        return 0


def _name(value: Any) -> str | None:
    return printable(str(value)) if value else None
