"""Reads the preferred answer from a judge's reply.

A judge can quote the answers, and an answer can have been written to be quoted. A preference therefore counts if it
carries the call's nonce, which no answer can know. A preference without the nonce counts only if no text that the judge
was shown reads like a verdict.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

Preference = Literal["first", "second", "tie"]
"""The better answer, by the order in which the answers were shown."""
PREFERENCES: tuple[Preference, ...] = get_args(Preference)

_MEANING: dict[str, Preference] = {"a": "first", "b": "second", "tie": "tie"}
_FENCED = re.compile(r"```[a-z]*\s*(.*?)\s*```", re.A | re.I | re.S)
_MARKUP = re.compile(r"[*_`]+|^[#>\s]+", re.M)

_NUMBER = r"(100|[0-9]{1,2}(?:\.[0-9]+)?)(?!\.?[0-9])(?:\s*/\s*100?\b)?"
_PAIR = rf"(?<![0-9.,/]){_NUMBER}(?:\s*[,;]\s*|\s+(?:and\s+)?){_NUMBER}(?!\s*[,;/]?\s*[0-9])"
_SCORES = re.compile(
    rf"\b(?:scores?|ratings?)\s*(?:are|is|of)?\s*[:=]?\s*{_PAIR}|^\s*{_PAIR}\s*(?:$|[.:;(-])", re.A | re.I
)
_AFTER = r"(?=\s*(?:$|[.;:!?)\]\"'(-]|,(?!\s*(?:a|b|tie)\b)|because\b|since\b|is (?:the )?better\b))"
_STATED = re.compile(
    r"\[\[\s*(?:(a|b)|c|tie)\s*\]\]"  # [[C]] is a tie in frames that many models know
    r"|\b(?:verdict|winner|judge?ment|(?:better|preferred) (?:answer|response|one))\s*(?:[:=]|is\b:?)\s*"
    rf"[\"'(\[]*(?:an?\s+|the\s+)?(?:(?:answer|response|assistant|option)\s+)?[\"'(\[]*(a|b|tie)\b[\"')\]]*{_AFTER}",
    re.A | re.I,
)
_BARE = re.compile(r"^[\"'(\[\s]*(a|b|tie)[\"')\]]*\s*(?:[.!]?\s*$|[.,]?\s+(?:because|since)\b)", re.A | re.I)

# Texts from which a quotation that looks like a verdict could be cut: broader than the statements that count.
_HINT = re.compile(
    r"\[\[|\b(?:verdict|winner|judge?ment)\b|\"token\"|\b(?:answer|response|assistant|option)\s*[ab12]\b"
    r"|\b(?:first|second|better|preferred) (?:answer|response|one)\b"
    r"|^[^\w\n]*[ab][).:]|\b(?-i:[AB])[^\w\n]*$|\btie[^\w\n]*$",
    re.A | re.I | re.M,
)


def parse(reply: str, nonce: str, material: Sequence[str]) -> Preference | None:
    """Read the preference from a reply.

    Args:
        reply: The judge's whole reply.
        nonce: The random text that the judge was asked to repeat in its verdict.
        material: The texts that the judge was shown and can quote: the prompt and the answers.

    Returns:
        The preference; None if the reply has none, an ambiguous one, or one that could be a quotation.
    """
    fence = _FENCED.fullmatch(reply.strip())
    whole = _object(fence[1] if fence else reply.strip())
    if whole is not None and "verdict" in whole:
        trusted = whole.get("token") == nonce or not any(map(reads_like_a_verdict, material))
        return _stated(whole) if trusted else None
    signed = [_stated(verdict) for _, verdict in _verdict_objects(reply) if verdict.get("token") == nonce]
    if any(signed):  # the instructions' example carries the nonce too, but states no preference
        return [preference for preference in signed if preference][-1]
    if any(map(reads_like_a_verdict, material)):
        return None
    return _tolerant(reply)


def reads_like_a_verdict(text: str) -> bool:
    """Whether a quotation from the text could be mistaken for a judge's verdict."""
    lines = _lines(text)
    return (
        any(True for _ in _verdict_objects(text))
        or any(_BARE.match(line) or _SCORES.search(line) or re.search(_PAIR, line, re.A | re.I) for line in lines)
        or _HINT.search("\n".join(lines)) is not None
    )


def _tolerant(reply: str) -> Preference | None:
    """The last statement of a judge that ignores the format; None if statements on that line contradict each other."""
    lines = _lines(reply)
    statements = [  # (line number, preference)
        (reply.count("\n", 0, end), preference)
        for end, verdict in _verdict_objects(reply)
        if (preference := _stated(verdict))
    ]
    for i, line in enumerate(lines):
        statements += [(i, _MEANING[(match[1] or match[2] or "tie").lower()]) for match in _STATED.finditer(line)]
    nonempty = [i for i, line in enumerate(lines) if line.strip()]
    for i in {nonempty[0], nonempty[-1]} if nonempty else ():
        statements += [(i, _compared(match)) for match in _SCORES.finditer(lines[i])]
    bare = {i: _MEANING[match[1].lower()] for i in nonempty if (match := _BARE.match(lines[i]))}
    if len(set(bare.values())) == 1:  # letters that differ are headings or a list
        statements += [(i, preference) for i, preference in bare.items() if i in (nonempty[0], nonempty[-1])]
    last_line = max((i for i, _ in statements), default=None)
    preferences = {preference for i, preference in statements if i == last_line}
    return preferences.pop() if len(preferences) == 1 else None


def _lines(text: str) -> list[str]:
    """The lines of a text without Markdown markup."""
    return [_MARKUP.sub("", line) for line in text.split("\n")]


def _compared(match: re.Match[str]) -> Preference:
    """The preference that two scores express."""
    first, second = (float(group) for group in match.groups() if group is not None)
    return "tie" if first == second else "first" if first > second else "second"


def _stated(verdict: dict[str, Any]) -> Preference | None:
    """The preference that a verdict object states."""
    value = verdict["verdict"]
    return _MEANING.get(value.strip().strip("[]").lower()) if isinstance(value, str) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs.

    Raises:
        ValueError: a key occurs twice, so that its value would be ambiguous.
    """
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key occurs twice in a JSON object")
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _object(text: str) -> dict[str, Any] | None:
    """The whole text as one JSON object; None if it is not one."""
    with contextlib.suppress(ValueError, RecursionError):
        value = _DECODER.decode(text)
        return value if isinstance(value, dict) else None
    return None


def _verdict_objects(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """JSON objects with a key `verdict` in a text, with the position of each one's end; nested objects are skipped."""
    start = text.find("{")
    while start >= 0:
        next_start = start + 1
        with contextlib.suppress(ValueError, RecursionError):
            value, end = _DECODER.raw_decode(text, start)
            if "verdict" in value:
                next_start = end
                yield end, value
        start = text.find("{", next_start)
