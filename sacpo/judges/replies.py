"""Reads the preferred answer from a judge's reply.

A judge can quote the answers, and an answer can have been written to be quoted. A preference therefore counts if it
carries the call's nonce, which no answer can know. A preference without the nonce counts only if no text that the judge
was shown reads like a verdict. Thoughts before the verdict are drafts and never count.

JSON that a model writes by hand is often broken: raw line ends, stray backslashes, quotes that are not escaped. Its
fields `verdict` and `token` are then read by themselves. A reply whose fields contradict each other has no preference.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sacpo.judges.thoughts import without_open_thought, without_thoughts

Preference = Literal["first", "second", "tie"]
"""The better answer, by the order in which the answers were shown."""
PREFERENCES: tuple[Preference, ...] = get_args(Preference)

_MEANING: dict[str, Preference] = {"a": "first", "b": "second", "1": "first", "2": "second", "tie": "tie"}
_NOUN = r"(?:answer|response|assistant|option|candidate|model|output|completion)"
_VALUE = re.compile(
    rf"(?:final\s+)?(?:the\s+)?(?:(?P<letter>[ab])|{_NOUN}[\s_#:-]*[(\[\"']?(?P<named>[ab12])[)\]\"']?"
    rf"|(?P<ordinal>first|second)(?:[\s_]+(?:{_NOUN}|one))?|(?P<tie>(?:an?\s+)?(?:tie|draw)|equal|neither))"
    r"(?:\s+(?:is|are)\s+(?:the\s+)?better(?:\s+(?:answer|response|one))?(?:\s+than\s+[^,;]*)?)?",
    re.A | re.I,
)
"""A value of the field `verdict`."""
_FENCED = re.compile(r"```[a-z]*\s*(.*?)\s*```", re.A | re.I | re.S)
_MARKUP = re.compile(r"[*_`]+|^[#>\s]+", re.M)
_QUOTE = r"[\"'\u201c\u201d]"
_VERDICT_FIELD = re.compile(
    rf"{_QUOTE}verdict{_QUOTE}\s*:\s*{_QUOTE}?(?P<value>[^\"'\u201c\u201d,}}\n]*){_QUOTE}?", re.I
)
_BEGINNING = re.compile(rf"\{{\s*{_QUOTE}(?:reasons|verdict|token){_QUOTE}\s*:", re.I)
"""Where an object of the requested form begins."""
_FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94) if chr(0x21 + i) not in "\"'\\"} | {0x3001: ",", 0x3002: "."}
"""Full-width letters and punctuation. Quotes and backslashes are left out, since they would break JSON."""
_QUOTES = dict.fromkeys(map(ord, "\u201c\u201d\u201e\u00ab\u00bb\u300c\u300d\u300e\u300f\uff02"), '"') | dict.fromkeys(
    map(ord, "\u2018\u2019\u201a\uff07"), "'"
)
_ESCAPE = re.compile(r"\\(?:(u[0-9a-fA-F]{4}|[\"\\/bfnrt])|)")

_NUMBER = r"(100|[0-9]{1,2}(?:\.[0-9]+)?)(?!\.?[0-9])(?:\s*/\s*100?\b)?"
_PAIR = rf"(?<![0-9.,/]){_NUMBER}(?:\s*[,;]\s*|\s+(?:and\s+)?){_NUMBER}(?!\s*[,;/]?\s*[0-9])"
_SCORES = re.compile(
    rf"\b(?:scores?|ratings?)\s*(?:are|is|of)?\s*[:=]?\s*{_PAIR}|^\s*{_PAIR}\s*(?:$|[.:;(-])", re.A | re.I
)
_AFTER = (
    r"(?=\s*(?:$|[.;:!)\]\"(]|'(?!\w)|,(?!\s*(?:a|b|tie)\b)|because\b|since\b|is (?:the )?better\b)"
    r"|\s+[-\u2013\u2014])"  # "A - it helps more", but not "tie-breaker"
)
_STATED = re.compile(
    r"\[\[\s*(?:(a|b)|c|tie)\s*\]\]"  # [[C]] is a tie in frames that many models know
    r"|\b(?:verdict|winner|judge?ment|(?:better|preferred) (?:answer|response|one))\s*(?:[:=]|is\b:?)\s*"
    rf"[\"'(\[]*(?:an?\s+|the\s+)?(?:(?:answer|response|assistant|option)\s+(?=[\"'(\[]*[ab12]\b)|(?![12]))"
    rf"[\"'(\[]*(a|b|tie|[12])\b[\"')\]]*{_AFTER}",
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
    reply = reply.translate(_FULL_WIDTH)
    whole = _whole_object(reply)
    if whole is None:
        reply = without_open_thought(without_thoughts(reply))
        whole = _whole_object(reply)
    is_quotable = any(map(reads_like_a_verdict, material))
    if whole is not None and whole.has("verdict"):
        trusted = whole.is_signed(nonce) or not (is_quotable or whole.contradicts_itself)
        return whole.preference() if trusted else None
    reply = _repaired(reply)
    objects = list(_verdict_objects(reply))
    fields = _broken_fields(reply, objects)
    signed = [
        *((end, item.preference(), False) for _, end, item in objects if item.is_signed(nonce)),
        *((field.position, field.preference, True) for field in fields if field.is_signed(nonce)),
    ]
    # The instructions' example carries the nonce too, but states no preference.
    stated = sorted((statement for statement in signed if statement[1]), key=lambda statement: statement[0])
    if stated:
        if any(is_broken for _, _, is_broken in stated):
            # Where an object begins and ends is unknown, so every field of the reply must agree.
            values = {item.preference() for _, _, item in objects} | {field.preference for field in fields}
            return stated[-1][1] if len(values - {None}) == 1 else None
        return stated[-1][1]
    if is_quotable or any(item.contradicts_itself for _, _, item in objects):
        return None
    if fields:  # the rest of broken JSON is not prose
        values = {item.preference() for _, _, item in objects} | {field.preference for field in fields}
        return values.pop() if len(values) == 1 and fields[-1].is_closed else None
    if any(not _is_inside(match.start(), objects) for match in _BEGINNING.finditer(reply)):
        return None
    return _tolerant(reply, objects)


def reads_like_a_verdict(text: str) -> bool:
    """Whether a quotation from the text could be mistaken for a judge's verdict."""
    text = text.translate(_FULL_WIDTH)
    lines = _lines(text)
    return (
        any(True for _ in _verdict_objects(text))
        or _VERDICT_FIELD.search(text) is not None
        or any(_BARE.match(line) or _SCORES.search(line) or re.search(_PAIR, line, re.A | re.I) for line in lines)
        or _HINT.search("\n".join(lines)) is not None
    )


def _tolerant(reply: str, objects: Sequence[tuple[int, int, _Object]]) -> Preference | None:
    """The last statement of a judge that ignores the format; None if statements on that line contradict each other."""
    lines = _lines(reply)
    statements = [  # (line number, preference)
        (reply.count("\n", 0, end), preference) for _, end, verdict in objects if (preference := verdict.preference())
    ]
    for i, line in enumerate(lines):
        statements += [(i, _MEANING[(match[1] or match[2] or "tie").lower()]) for match in _STATED.finditer(line)]
    nonempty = [i for i, line in enumerate(lines) if line.strip()]
    if len(nonempty) == 1 and (preference := meaning(lines[nonempty[0]])):
        statements.append((nonempty[0], preference))
    for i in {nonempty[0], nonempty[-1]} if nonempty else ():
        statements += [(i, _compared(match)) for match in _SCORES.finditer(lines[i])]
    bare = {i: _MEANING[match[1].lower()] for i in nonempty if (match := _BARE.match(lines[i]))}
    if len(set(bare.values())) == 1:  # letters that differ are headings or a list
        statements += [(i, preference) for i, preference in bare.items() if i in (nonempty[0], nonempty[-1])]
    last_line = max((i for i, _ in statements), default=None)
    preferences = {preference for i, preference in statements if i == last_line}
    return preferences.pop() if len(preferences) == 1 else None


def _lines(text: str) -> list[str]:
    """The lines of a text without Markdown markup, with plain quotes."""
    return [_MARKUP.sub("", line) for line in text.translate(_QUOTES).split("\n")]


def _compared(match: re.Match[str]) -> Preference:
    """The preference that two scores express."""
    first, second = (float(group) for group in match.groups() if group is not None)
    return "tie" if first == second else "first" if first > second else "second"


def meaning(value: Any) -> Preference | None:
    """The preference that a value of the field `verdict` states, such as "A", "Answer A" or "Response 1"."""
    if not isinstance(value, str):
        return None
    match = _VALUE.fullmatch(value.strip().strip("[]()*_`\"'.!: \t\r\n"))
    if match is None:
        return None
    if match["tie"]:
        return "tie"
    if match["ordinal"]:
        return "first" if match["ordinal"].lower() == "first" else "second"
    return _MEANING[(match["letter"] or match["named"]).lower()]


# --------------------------------------------------------------------------------------------------- JSON and its parts


@dataclass(frozen=True)
class _Object:
    """A JSON object whose keys can occur more than once."""

    pairs: list[tuple[str, Any]]

    def values(self, key: str) -> list[Any]:
        """All values of a key."""
        return [value for name, value in self.pairs if name.strip().lower() == key]

    def has(self, key: str) -> bool:
        """Whether the key occurs."""
        return bool(self.values(key))

    def is_signed(self, nonce: str) -> bool:
        """Whether its token is the nonce; a second, different token makes it unsigned."""
        tokens = self.values("token")
        return bool(tokens) and all(isinstance(token, str) and token.strip() == nonce for token in tokens)

    def preference(self) -> Preference | None:
        """The preference that its verdict states; None if two verdicts contradict each other."""
        meanings = {meaning(value) for value in self.values("verdict")}
        return meanings.pop() if len(meanings) == 1 else None

    @property
    def contradicts_itself(self) -> bool:
        """Whether two of its verdicts state different preferences, or two of its tokens differ."""
        meanings = {meaning(value) for value in self.values("verdict")} - {None}
        return len(meanings) > 1 or len(set(map(str, self.values("token")))) > 1


@dataclass(frozen=True)
class _Field:
    """A field `verdict` outside every well-formed object.

    Attributes:
        position: Where it begins.
        preference: The preference that it states.
        before, after: The text directly before and after it.
    """

    position: int
    preference: Preference | None
    before: str
    after: str

    def is_signed(self, nonce: str) -> bool:
        """Whether the field `token` with the nonce stands directly beside it."""
        token = rf"{_QUOTE}token{_QUOTE}\s*:\s*{_QUOTE}?{re.escape(nonce)}\b{_QUOTE}?"
        is_followed = re.match(rf"\s*,\s*{token}", self.after, re.I) is not None
        return is_followed or re.search(rf"{token}\s*,\s*$", self.before, re.I) is not None

    @property
    def is_closed(self) -> bool:
        """Whether the object ends after it, so that the reply was not cut within the object."""
        return "}" in self.after


_DECODER = json.JSONDecoder(object_pairs_hook=_Object, strict=False)  # lenient: raw line ends within strings


def _repaired(text: str) -> str:
    """The text in which a backslash that begins no escape sequence of JSON stands for itself."""
    return _ESCAPE.sub(lambda match: match[0] if match[1] else r"\\", text)


def _whole_object(reply: str) -> _Object | None:
    """The whole reply, without a code fence, as one JSON object; None if it is not one."""
    text = reply.strip()
    fence = _FENCED.fullmatch(text)
    with contextlib.suppress(ValueError, RecursionError):
        value = _DECODER.decode(_repaired(fence[1] if fence else text))
        return value if isinstance(value, _Object) else None
    return None


def _verdict_objects(text: str) -> Iterator[tuple[int, int, _Object]]:
    """JSON objects with a key `verdict` in a text, with the start and end of each one; nested objects are skipped."""
    start = text.find("{")
    while start >= 0:
        next_start = start + 1
        with contextlib.suppress(ValueError, RecursionError):
            value, end = _DECODER.raw_decode(text, start)
            if value.has("verdict"):
                next_start = end
                yield start, end, value
        start = text.find("{", next_start)


def _broken_fields(text: str, objects: Sequence[tuple[int, int, _Object]]) -> list[_Field]:
    """The fields `verdict` of a text that are in none of its well-formed objects."""
    return [
        _Field(match.start(), meaning(match["value"]), text[: match.start()], text[match.end() :])
        for match in _VERDICT_FIELD.finditer(text)
        if not _is_inside(match.start(), objects)
    ]


def _is_inside(position: int, objects: Sequence[tuple[int, int, _Object]]) -> bool:
    return any(start <= position < end for start, end, _ in objects)
