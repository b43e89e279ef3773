"""Puts the parts of a streamed reply together. Requests ask for no stream, but some proxies send one anyway."""

from __future__ import annotations

import json
from typing import Any

_STARTS = ("data:", "event:", ":")
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning", "thinking")
"""Fields of a message that come in parts."""
_DETAILS = "reasoning_details"
"""Parts of thoughts in a list, each chunk with its own."""
BROKEN_STREAM = "incomplete_stream"
"""`finish_reason` of a stream that ended before the reply did."""


def read_body(text: str) -> Any:
    """The JSON of a body; the chunks of a stream become one chat completion.

    Raises:
        ValueError: the body is neither JSON nor a stream of JSON.
    """
    text = text.removeprefix("\ufeff").lstrip()
    if not text.startswith(_STARTS):
        return json.loads(text)
    lines = (line.removeprefix("data:").strip() for line in text.split("\n") if line.startswith("data:"))
    chunks = [json.loads(line) for line in lines if line and line != "[DONE]"]
    return _joined([chunk for chunk in chunks if isinstance(chunk, dict)])


def _joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    body = {name: value for chunk in chunks for name, value in chunk.items() if value is not None and name != "choices"}
    message: dict[str, Any] = {}
    arguments, finish = "", None
    tokens: list[Any] = []
    choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
    for choice in choices:
        finish = choice.get("finish_reason") or finish
        delta = choice.get("delta") or choice.get("message") or {}
        for name in _TEXTS:
            if isinstance(part := delta.get(name), str):
                message[name] = message.get(name, "") + part
        for call in delta.get("tool_calls") or []:
            arguments += str((call.get("function") or {}).get("arguments") or "")
        if isinstance(part := delta.get(_DETAILS), list):
            message[_DETAILS] = message.get(_DETAILS, []) + part
        tokens += (choice.get("logprobs") or {}).get("content") or []
    if arguments:
        message["tool_calls"] = [{"function": {"arguments": arguments}}]
    if not choices:
        return body
    choice = {"message": message, "finish_reason": finish or BROKEN_STREAM}
    return body | {"choices": [choice | ({"logprobs": {"content": tokens}} if tokens else {})]}
