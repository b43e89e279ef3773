"""Reads the probability of each verdict from the token log-probabilities of a judge's reply.

A reply states its verdict in one or a few tokens, and an endpoint can give the most probable alternatives of each. The
probability of a verdict is the sum over the alternatives that state it, given the text before. What falls on
alternatives that state no verdict, or is not among those that the endpoint lists, is the mass on no verdict.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from sacpo.judges.replies import PREFERENCES, Preference, meaning

TOP_LOGPROBS = 5
"""Alternatives of each token that are asked for: the most that all endpoints give."""

_DECORATION = " \t\r\n\"'`*_([{:="
_FIELD = re.compile(r"[\"']verdict[\"']\s*:", re.I)
_OPENINGS = re.compile(r"\[\[|[:=]|\bis\b|^", re.I | re.M)  # where replies in other forms state a verdict
_VALUE = re.compile(r"[\s\"'`*_(\[{:=]*([^\]\"'.,;:)}\n*]*)")
_NOUN = r"(?:answer|response|assistant|option|candidate|model|output|completion)[\s_#:-]*[(\[\"']?"
_STATED = re.compile(rf"(?:final\s+)?(?:the\s+)?(?:{_NOUN}(?P<named>[ab12])|(?P<letter>[ab]))(?![a-z0-9])")
_TIES = ("tie", "draw", "equal", "neither", "a tie", "a draw")
_BYTE_LEVEL = str.maketrans({"\u0120": " ", "\u010a": "\n", "\u2581": " "})  # how raw tokens write white space
_END_OF_THOUGHT = "</think>"
_LONGEST = 40  # characters after which a value that has stated no verdict is given up


@dataclass(frozen=True)
class Token:
    """A token of a reply.

    Attributes:
        text: Its bytes, one character each.
        alternatives: Probability of the tokens that could have stood here, by their text; this token is among them.
    """

    text: str
    alternatives: dict[str, float]


@dataclass(frozen=True)
class VerdictProbabilities:
    """Probability of each verdict, by the order in which the answers were shown; the sum is at most 1."""

    first: float
    second: float
    tie: float

    @property
    def none(self) -> float:
        """Probability of no verdict."""
        return max(0.0, 1 - self.first - self.second - self.tie)

    @property
    def most_probable(self) -> Preference:
        """The most probable verdict; a tie if two are equally probable."""
        values: dict[Preference, float] = {name: getattr(self, name) for name in PREFERENCES}
        best = [name for name, value in values.items() if value == max(values.values())]
        return best[0] if len(best) == 1 else "tie"

    @property
    def score(self) -> float:
        """Score of the answer shown first in [0, 1], ties half, given that there is a verdict."""
        return (self.first + self.tie / 2) / (self.first + self.second + self.tie)


def read_tokens(choice: dict[str, Any]) -> list[Token] | None:
    """The tokens of a reply with their alternatives.

    Args:
        choice: A choice of a chat completion, with `logprobs` in the form of OpenAI's chat API or of its older API.

    Returns:
        The tokens; None if the endpoint gave no log-probabilities, none of alternatives, or one that is no number.
    """
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    try:
        if logprobs.get("content"):
            if not any(entry.get("top_logprobs") for entry in logprobs["content"]):
                return None
            return [_token(entry, entry.get("top_logprobs") or []) for entry in logprobs["content"]]
        if logprobs.get("tokens") and any(logprobs["top_logprobs"]):
            columns = (logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"])
            return [
                _token(
                    {"token": token, "logprob": value}, [{"token": t, "logprob": p} for t, p in (others or {}).items()]
                )
                for token, value, others in zip(*columns, strict=True)
            ]
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return None


def _token(entry: dict[str, Any], alternatives: list[dict[str, Any]]) -> Token:
    known: dict[str, float] = {}
    for item in (*alternatives, entry):
        logprob = float(item["logprob"])
        if math.isnan(logprob):
            raise ValueError("a log-probability is no number")
        known[_text(item)] = math.exp(min(0.0, logprob))
    return Token(_text(entry), known)


def _text(entry: dict[str, Any]) -> str:
    """The token's bytes, one character each, so that a character that is split over tokens moves no position."""
    if entry.get("bytes") is not None:
        return bytes(entry["bytes"]).decode("latin-1")
    return str(entry["token"]).translate(_BYTE_LEVEL).encode("utf-8", "replace").decode("latin-1")


def verdict_probabilities(tokens: list[Token], preference: Preference) -> VerdictProbabilities | None:
    """The probability of each verdict at the place where the reply states its own.

    Args:
        tokens: The reply's tokens.
        preference: The verdict that the reply states.

    Returns:
        The probabilities; None if the place is not found.
    """
    reply = "".join(token.text for token in tokens)
    place = _place(reply, preference)
    if place is None:
        return None
    opening, start = place
    totals = dict.fromkeys(PREFERENCES, 0.0)
    reached, end = 1.0, 0  # probability of the tokens of the value so far; end of the last token
    for token in tokens:
        begin, end = end, end + len(token.text)
        if end <= start:
            continue
        before = reply[opening:begin]
        for text, probability in token.alternatives.items():
            if stated := _stated(before + text):
                totals[stated] += reached * probability
        if _stated(before + token.text) or end > start + _LONGEST:
            break
        reached *= token.alternatives[token.text]
    return VerdictProbabilities(**totals) if totals[preference] > 0 else None


def _place(text: str, preference: Preference) -> tuple[int, int] | None:
    """Where the verdict's statement opens, and where its value begins; None if it is not found."""
    begin = text.rfind(_END_OF_THOUGHT) + 1  # 0 without thoughts
    for pattern in (_FIELD, _OPENINGS):
        for match in reversed(list(pattern.finditer(text, begin))):
            value = _VALUE.match(text, match.end())
            if value is not None and meaning(value[1]) == preference:
                return match.end(), value.start(1)
    return None


def _stated(text: str) -> Preference | None:
    """The verdict that the beginning of a value states."""
    value = text.lstrip(_DECORATION).lower()
    if match := _STATED.match(value):
        return "first" if (match["named"] or match["letter"]) in "a1" else "second"
    if value.startswith(_TIES) or value in ("t", "ti"):
        return "tie"
    return "first" if value.startswith("first") else "second" if value.startswith("second") else None
