"""Reads an endpoint's errors: what was refused, and so which calls the error concerns.

Vendors use the same status codes for different problems, so the text of the error decides. The words below are those of
OpenAI, Azure, Anthropic, Google, Mistral, Groq, xAI, OpenRouter, DeepSeek, DashScope, Moonshot, Zhipu, MiniMax, Baidu,
vLLM, SGLang, TGI, llama.cpp and Ollama.
"""

from __future__ import annotations

import email.utils
import enum
import json
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

RETRY_AFTER_CAP = 300.0  # seconds
SOON_S = 3600.0
"""A limit that is over later than this is a quota that is used up, and no reason to wait."""


class Refusal(enum.Enum):
    """What an error is about."""

    RETRY = "the endpoint is busy or down: the same call can succeed later"
    ITEM = "this call's content or length: no retry can help it, and other calls are not concerned"
    PARAMETER = "a parameter that this model does not take: later requests leave it out"
    QUOTA = "the account has no credit left: every later call would fail"
    CONFIGURATION = "the key, the model or a setting: every call would fail"
    UNKNOWN = "the error does not say"


@dataclass(frozen=True)
class ReadError:
    """An error that was read.

    Attributes:
        refusal: What it is about.
        parameter: Name of the refused parameter, a key of the request or `system`: for `PARAMETER`, and for
            `CONFIGURATION` where the model takes the parameter but not its value; else empty.
    """

    refusal: Refusal
    parameter: str = ""


SYSTEM = "system"
"""Stands for the role of the first message among the names of parameters."""

_QUOTA = re.compile(
    r"insufficient[_ ](?:user[_ ])?(?:quota|balance|credits?|funds)|billing[_ ](?:hard[_ ]limit|not[_ ]active)"
    r"|credit balance is too low|credit limit|out of credits|account (?:is|has been) (?:suspended|deactivated"
    r"|in arrears)"
    r"|arrearage|exceeded_current_quota|billing (?:is |has been )?(?:disabled|not enabled|inactive)"
    r"|(?:quota|credits?|balance) (?:of .{1,40} )?(?:is|are|has been|have been) (?:used up|exhausted|depleted"
    r"|insufficient)"
    r"|have (?:any|no) (?:remaining )?(?:credits?|balance|quota|licen[sc]es?)|no (?:credits?|quota) (?:left|remaining)"
    r"|\u4f59\u989d\u4e0d\u8db3|\u6b20\u8d39|\u8bf7\u5145\u503c",  # balance too low, in arrears, please top up
    re.I,
)
_QUOTA_OR_RATE = re.compile(
    r"exceeded your (?:current|monthly) quota|check your plan and billing|spending limit"
    r"|\bdaily\b.{0,40}\blimit|\blimit\b.{0,40}\bper[- ]day\b",
    re.I,
)
"""Also used for limits that are over soon; the error then says when to try again."""
_TRY_AGAIN = re.compile(r"(?:retry|try again) in (?P<wait>(?:[0-9.]+ ?[a-z]+[ ,]*)*)|retrydelay|per[_ ]?minute", re.I)
_CONTENT_CODES = re.compile(
    r"content[_ -]?filter|content_policy|responsibleai|data_?inspection|contentpolicyviolation"
    r"|moderation_blocked|usage guidelines",
    re.I,
)
_CONTENT = re.compile(
    r"content (?:management )?polic|content exists risk|usage polic|safety|flagged|moderation|inappropriate"
    r"|sensitive|harmful|unsafe|prohibited|high risk|repetiti|repeated|violat|invalid_prompt|not appropriate"
    r"|(?:prompt|content|input|output|request|response) (?:was |is |has been |have been )?(?:blocked|filtered"
    r"|rejected)"
    r"|\u654f\u611f|\u4e0d\u5b89\u5168|\u8fdd\u89c4|\u8fdd\u53cd|\u5ba1\u6838",  # sensitive, unsafe, against rules
    re.I,
)
_LENGTH_CODES = re.compile(
    r"context_length_exceeded|string_above_max_length|exceed_context_size|context_window_exceeded|request_too_large"
    r"|(?:maximum|max) context (?:length|window)|prompt is too long|input is too long"
    r"|could not finish the message",  # the limit of tokens was reached within the reply
    re.I,
)
_TOO_LARGE = re.compile(r"request too large|tokens must be reduced", re.I)
"""A request that is larger than a limit per minute never fits in it."""
_LENGTH = re.compile(
    r"context (?:length|window|size|limit)|the context has|max(?:imum)?[_ ](?:model[_ ]|input[_ ]|sequence[_ ])?len"
    r"|(?:prompt|input|request|message|conversation|text|content)s? (?:is|are|was|were) (?:too|longer|larger)"
    r"|too (?:long|many (?:input |prompt )?tokens)|(?:input|prompt) (?:token|length)|length of the (?:input"
    r"|prompt|messages)"
    r"|(?:contains|less than|fewer than|more than) [0-9,]+ tokens|number of (?:input )?tokens|max_new_tokens"
    r"|reduce (?:the |your )?(?:length"
    r"|message|prompt)"
    r"|input or output tokens must be reduced|request too large|payload too large|entity too large|string too long"
    r"|\u957f\u5ea6|\u8d85\u957f",  # length, too long
    re.I,
)
_CONFIGURATION = re.compile(
    r"api[_ ]key|authenticat|unauthori[sz]ed|permission|model[_ ]not[_ ]found|unknown model|invalid model"
    r"|no such model"
    r"|not a valid model|unsupported model|model .{0,120}?(?:does not exist|not found|is not available"
    r"|is not supported$|was retired"
    r"|has been deprecated)|location is not supported|deploymentnotfound",
    re.I,
)
_UNSUPPORTED = re.compile(
    r"unsupported|not (?:be )?(?:supported|taken|allowed|permitted|accepted|available|enabled|recogni[sz]ed"
    r"|implemented)"
    r"|unrecogni[sz]ed|unknown|unexpected|extra (?:inputs|fields)|extra_forbidden|deprecated|does(?: not"
    r"|n't) (?:support"
    r"|accept|take|allow)|do(?: not|n't) (?:support|accept|take|allow)|cannot be (?:used|set|specified)|only"
    r"|not a valid|invalid parameter|no longer|must alternate|remove",
    re.I,
)
_RANGE = re.compile(
    r"between|less than|greater than|at most|at least|<=|>=|too (?:large|small|high|low)|range|minimum|maximum"
    r"|exceed",
    re.I,
)
_SYSTEM_ROLE = re.compile(
    r"system (?:role|message|prompt|instruction)|developer (?:role|message|instruction)|roles? .{0,40}(?:system"
    r"|developer)"
    r"|(?:system|developer).{0,20} role|messages\[0\]\.role|roles must alternate|only user and assistant roles",
    re.I,
)
_NAMES = {
    "response_format": r"response_format|json_schema|structured outputs?|guided (?:json|decoding)|grammar",
    "max_tokens": r"max_tokens",
    "max_completion_tokens": r"max_completion_tokens",
    "temperature": r"temperature",
    "top_p": r"top_p",
    "seed": r"seed",
    "logprobs": r"(?:top_)?logprobs?|log[ -]?prob(?:abilitie)?s",
}
_ECHOED = frozenset({"input", "body", "request", "ctx", "url", "stack", "trace", "received", "failed_generation"})
"""Keys under which endpoints repeat the request, or what the model wrote."""
_NOT_THE_FORMAT = re.compile(r"json_validate_failed|failed to (?:generate|validate) json", re.I)
"""The model's reply did not follow the reply format; the next can."""
_BUSY = re.compile(
    r"overload|temporar|try again|retry|later|currently|busy|capacity|rate limit|too many requests", re.I
)


def read_error(
    status: int | None, text: str, request: dict[str, Any], shown: Sequence[str], accepted: bool
) -> ReadError:
    """Read an error.

    Args:
        status: The HTTP status; for an error in a reply with status 200, the code that stands there, or None.
        text: The body.
        request: The request that was refused.
        shown: The texts of this call. Some endpoints repeat the request, and its words are not the endpoint's.
        accepted: Whether the endpoint has answered a request with these settings before.
    """
    words, named = _words(text, shown)
    if status == 402 or _QUOTA.search(words) or (_QUOTA_OR_RATE.search(words) and not _is_over_soon(words)):
        return ReadError(Refusal.QUOTA)
    if status is None:
        error = read_error(400, text, request, shown, accepted)
        is_passing = error.refusal is Refusal.CONFIGURATION and _BUSY.search(words) is not None
        return ReadError(Refusal.RETRY) if is_passing or error.refusal is Refusal.UNKNOWN else error
    if status in (401, 404, 405, 407):
        return ReadError(Refusal.CONFIGURATION)
    if status in (408, 409, 424, 425, 429, 499) or status >= 500 or _NOT_THE_FORMAT.search(words):
        is_item = any(pattern.search(words) for pattern in (_CONTENT_CODES, _LENGTH_CODES, _TOO_LARGE))
        return ReadError(Refusal.ITEM if is_item else Refusal.RETRY)
    if status in (413, 414, 451) or _CONTENT_CODES.search(words):
        return ReadError(Refusal.ITEM)
    if status == 403:
        if _CONTENT.search(words):
            return ReadError(Refusal.ITEM)
        if "blocked" not in words.lower():
            return ReadError(Refusal.CONFIGURATION)
        return ReadError(Refusal.ITEM if accepted else Refusal.UNKNOWN)  # a firewall, of this text or of everything
    if _CONFIGURATION.search(words) and not named & {*_NAMES}:
        return ReadError(Refusal.CONFIGURATION)
    if parameter := _refused_parameter(words, named, request):
        return parameter
    if _LENGTH.search(words) or _LENGTH_CODES.search(words) or _CONTENT.search(words):
        return ReadError(Refusal.ITEM)
    return ReadError(Refusal.UNKNOWN)


def _refused_parameter(words: str, named: Collection[str], request: dict[str, Any]) -> ReadError | None:
    """The parameter of the request that the endpoint does not take; None if the error is about something else."""
    if _LENGTH_CODES.search(words) or re.search(r"context", words, re.I):
        return None  # names max_tokens, but the prompt leaves no room for them
    if "max_tokens" in request and re.search("max_completion_tokens", words):
        return ReadError(Refusal.PARAMETER, "max_tokens")
    positions = {}
    for name, pattern in _NAMES.items():
        if name not in request:
            continue
        match = re.search(rf"(?<![a-z_])(?:{pattern})(?![a-z_])", words, re.I)
        if match is not None:
            positions[name] = -1 if name in named else match.start()
    roles = {message["role"] for message in request["messages"]}
    if roles & {"system", "developer"} and (match := _SYSTEM_ROLE.search(words)):
        positions[SYSTEM] = match.start()
    if not positions:
        return None
    parameter = min(positions, key=lambda name: positions[name])
    if _UNSUPPORTED.search(words) or parameter == "response_format":
        return ReadError(Refusal.PARAMETER, parameter)
    if parameter in named or _RANGE.search(words):
        return ReadError(Refusal.CONFIGURATION, parameter)  # a value that the model does not take: the user must choose
    return None


def _is_over_soon(words: str) -> bool:
    """Whether an error says that the same call may succeed within `SOON_S`, or soon in other words."""
    import pandas as pd  # takes half a second, which only such an error needs

    match = _TRY_AGAIN.search(words)
    if match is None:
        return False
    try:
        wait_s = pd.Timedelta((match["wait"] or "").lower().rstrip(" ,")).total_seconds()
    except ValueError:  # a unit that pandas does not know
        return True
    return not wait_s > SOON_S  # NaN if no time is said


def _words(text: str, shown: Sequence[str]) -> tuple[str, frozenset[str]]:
    """The endpoint's own words in the body of an error, and the parameters that it names in fields for that."""
    named: set[str] = set()
    try:
        words = " ".join(_strings(json.loads(text), named))
    except (ValueError, RecursionError):
        words = text
    for part in sorted(shown, key=len, reverse=True):
        if len(part) > 3:
            words = words.replace(part, " ")
    return words[:5000], frozenset(named)


def _strings(value: Any, named: set[str], key: str = "") -> Iterator[str]:
    """All strings of a JSON value, except for repetitions of the request."""
    if isinstance(value, str):
        yield value
        if key in ("param", "loc"):
            named.add(value.split(".")[0].split("[")[0])
        if value[:1] in "{[":  # an error inside an error, as proxies send it
            try:
                yield from _strings(json.loads(value), named)
            except (ValueError, RecursionError):
                return
    elif isinstance(value, dict):
        if value.get("filtered") is True:  # Azure's result of one category
            yield "content_filter"
        for name, item in value.items():
            if name not in _ECHOED:
                yield from _strings(item, named, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, named, key)


def retry_after_seconds(retry_after: str | None) -> float:
    """Seconds that a Retry-After header asks to wait, at most RETRY_AFTER_CAP.

    Args:
        retry_after: Value of the header, a number of seconds or a date; None if there is no header.

    Returns:
        The wait in seconds; 0 without a header, for a malformed one, and for a date in the past.
    """
    if retry_after is None:
        return 0.0
    try:
        wait_s = float(retry_after)
    except ValueError:
        try:
            wait_s = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(wait_s, RETRY_AFTER_CAP) if wait_s > 0 else 0.0
