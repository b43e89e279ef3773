"""Reads a judge's verdict out of its reply, and says nothing where the reply does not.

A judge may quote what it judges, and an answer may have been written to be quoted. So a verdict is believed when it
carries the call's nonce, which no answer knows; one without it only when nothing that the judge saw reads like a
verdict.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

Verdict = Literal["first", "second", "tie"]

_MEANING: dict[str, Verdict] = {"a": "first", "b": "second", "tie": "tie"}
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

# What a quotation can be cut from: broader than what counts as a statement.
_HINT = re.compile(
    r"\[\[|\b(?:verdict|winner|judge?ment)\b|\"token\"|\b(?:answer|response|assistant|option)\s*[ab12]\b"
    r"|\b(?:first|second|better|preferred) (?:answer|response|one)\b"
    r"|^[^\w\n]*[ab][).:]|\b(?-i:[AB])[^\w\n]*$|\btie[^\w\n]*$",
    re.A | re.I | re.M,
)


def parse(reply: str, nonce: str, material: Sequence[str]) -> Verdict | None:
    """The verdict, or none if the reply holds no verdict that can be told from a quotation, or an ambiguous one.

    Args:
        reply: The judge's whole reply.
        nonce: The random text that this call asked to have in its verdict.
        material: What the judge was shown and may quote: the answers, and the prompt.
    """
    fence = _FENCED.fullmatch(reply.strip())
    whole = _object(fence[1] if fence else reply.strip())
    if whole is not None and "verdict" in whole:
        believed = whole.get("token") == nonce or not any(map(reads_like_a_verdict, material))
        return _said(whole) if believed else None
    signed = [_said(found) for _, found in _objects(reply) if found.get("token") == nonce]
    if any(signed):  # the instructions' sample has the nonce too, but says nothing
        return [verdict for verdict in signed if verdict][-1]
    if any(map(reads_like_a_verdict, material)):
        return None
    return _tolerant(reply)


def reads_like_a_verdict(text: str) -> bool:
    """Whether a quotation from the text could be taken for a judge's verdict."""
    lines = _lines(text)
    return (
        any(True for _ in _objects(text))
        or any(_BARE.match(line) or _SCORES.search(line) or re.search(_PAIR, line, re.A | re.I) for line in lines)
        or _HINT.search("\n".join(lines)) is not None
    )


def _tolerant(reply: str) -> Verdict | None:
    """The last statement of a judge that does not follow the format; none if statements on its line disagree."""
    lines = _lines(reply)
    said = [(reply.count("\n", 0, end), verdict) for end, found in _objects(reply) if (verdict := _said(found))]
    for i, line in enumerate(lines):
        said += [(i, _MEANING[(match[1] or match[2] or "tie").lower()]) for match in _STATED.finditer(line)]
    filled = [i for i, line in enumerate(lines) if line.strip()]
    for i in {filled[0], filled[-1]} if filled else ():
        said += [(i, _compared(match)) for match in _SCORES.finditer(lines[i])]
    bare = {i: _MEANING[match[1].lower()] for i in filled if (match := _BARE.match(lines[i]))}
    if len(set(bare.values())) == 1:  # letters that disagree are headings or a list
        said += [(i, verdict) for i, verdict in bare.items() if i in (filled[0], filled[-1])]
    last = max((i for i, _ in said), default=None)
    verdicts = {verdict for i, verdict in said if i == last}
    return verdicts.pop() if len(verdicts) == 1 else None


def _lines(text: str) -> list[str]:
    """Lines without markup."""
    return [_MARKUP.sub("", line) for line in text.split("\n")]


def _compared(match: re.Match[str]) -> Verdict:
    first, second = (float(group) for group in match.groups() if group is not None)
    return "tie" if first == second else "first" if first > second else "second"


def _said(found: dict[str, Any]) -> Verdict | None:
    """What a verdict object says."""
    value = found["verdict"]
    return _MEANING.get(value.strip().strip("[]").lower()) if isinstance(value, str) else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, unless it names a key twice: which one counts would be a guess."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _object(text: str) -> dict[str, Any] | None:
    """The object that the text is as a whole."""
    with contextlib.suppress(ValueError, RecursionError):
        found = _DECODER.decode(text)
        return found if isinstance(found, dict) else None
    return None


def _objects(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every JSON object with a verdict, with the place where it ends; none inside another."""
    place = text.find("{")
    while place >= 0:
        end = place + 1
        with contextlib.suppress(ValueError, RecursionError):
            found, stop = _DECODER.raw_decode(text, place)
            if "verdict" in found:
                end = stop
                yield end, found
        place = text.find("{", end)
