"""Leaves the thoughts of reasoning models out of a text.

A model that thinks aloud writes its thoughts between tags. With some chat templates the prompt ends with the opening
tag, so that the text has only the closing one.
"""

from __future__ import annotations

import re

_NAMES = r"(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning)"
_OPEN = (
    rf"(?:<{_NAMES}>|\[THINK\]|\u25c1think\u25b7|<\|(?:begin_of_thought|START_THINKING)\|>"
    r"|<\|channel\|>(?:analysis|commentary)\b)"
)
_CLOSE = (
    rf"(?:</{_NAMES}>|\[/THINK\]|\u25c1/think\u25b7|<\|(?:end_of_thought|END_THINKING)\|>"
    r"|<\|channel\|>final\b[^<]*(?:<\|message\|>)?)"
)
_OPENED = re.compile(_OPEN, re.I)
_CLOSED = re.compile(_CLOSE, re.I)
_BLOCK = re.compile(rf"{_OPEN}(?:(?!{_OPEN}).)*?{_CLOSE}", re.I | re.S)


def without_thoughts(text: str) -> str:
    """The text without its thoughts.

    Args:
        text: An answer or a reply.

    Returns:
        The text without what stands between the tags of a thought, and without what stands before a closing tag that
        nothing opened. A thought that opens the text and never ends, because the token limit cut it, leaves nothing.
        A text without tags is returned unchanged.
    """
    if _OPENED.search(text) is None and _CLOSED.search(text) is None:
        return text
    rest = text
    while (shorter := _BLOCK.sub("", rest)) != rest:  # thoughts inside thoughts, from the inside
        rest = shorter
    closings = list(_CLOSED.finditer(rest))
    if closings:
        rest = rest[closings[-1].end() :]
    return "" if is_unfinished_thought(rest) else rest.strip()


def is_unfinished_thought(text: str) -> bool:
    """Whether the text begins with a thought that never ends."""
    return _OPENED.match(text.lstrip()) is not None and _CLOSED.search(text) is None


def without_open_thought(text: str) -> str:
    """The text up to a thought that is opened and never closed."""
    opening = _OPENED.search(text)
    return text if opening is None else text[: opening.start()]
