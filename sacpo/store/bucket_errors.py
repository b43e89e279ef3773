"""Errors of requests to a bucket: which of them may pass, and what a user can do about them.

obstore gives an error a type of its own for few reasons, and none if a list was requested. Otherwise the status and the
service's code are in its text alone: "... status code: 400 Bad Request: <Error><Code>ExpiredToken</Code>...".
"""

from __future__ import annotations

import re

_RETRIED_STATUS = (408, 409, 429)  # timeout, conflict with a concurrent conditional write, too many requests
_RETRIED_CODES = ("BadDigest", "IncompleteBody", "RequestTimeout", "Throttling")  # S3 answers 400 for errors in transit
_EXPIRED_CODES = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_WITHOUT_IDENTITY = "token request"  # obstore's text if no identity service gives credentials
_WRONG_REGION = "redirect without LOCATION"  # obstore's text for S3's answer 301


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    from obstore.exceptions import AlreadyExistsError, GenericError

    if isinstance(error, AlreadyExistsError):
        return (
            True  # obstore's type for every answer 409, which S3 gives while another conditional write is in progress
        )
    if not isinstance(error, GenericError) or _WRONG_REGION in str(error):
        return False
    status = _status(error)
    if _code(error) in _RETRIED_CODES or status is None:
        return not _is_denied(error)
    return not 400 <= status < 500 or status in _RETRIED_STATUS


def problem(error: Exception, credentials: str) -> str:
    """What is wrong with the bucket, and the user's next step: the text after the bucket's URI.

    Args:
        error: The error.
        credentials: Where the service's credentials come from, for people.
    """
    reason, text = _reason(error), plain_text(error)
    if _code(error) in _EXPIRED_CODES or "expir" in text.lower():
        return (
            f"cannot be used: {reason}; renew the credentials ({credentials}) and run the same command again: finished "
            "steps are kept"
        )
    if _WITHOUT_IDENTITY in text:
        way_out = f"give credentials that may read, write, list and delete there ({credentials})"
    elif _is_denied(error):
        return (
            f"cannot be {_use(text)} with these credentials: {reason}; give credentials that may read, write, list "
            f"and delete there ({credentials})"
        )
    elif not is_transient(error):
        way_out = f"check the bucket's {'region or ' * (_WRONG_REGION in reason)}name and the options of the URI"
    else:
        way_out = "run the same command again when the service answers, and the sweep continues"
    return f"cannot be reached: {reason}; {way_out}"


def _use(text: str) -> str:
    """What the refused request would have done, by its method and URL."""
    if re.search(r"performing DELETE|[?&]delete\b|Bulk delete|comp=batch", text):
        return "deleted from"
    if "list request" in text:
        return "listed"
    return "read" if re.search(r"performing (GET|HEAD)", text) else "written"


def _status(error: Exception) -> int | None:
    match = re.search(r"code: (\d{3})", str(error))
    return int(match[1]) if match else None


def _code(error: Exception) -> str | None:
    match = re.search(r"<Code>(\w+)</Code>", str(error))
    return match[1] if match else None


def _is_denied(error: Exception) -> bool:
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    denied_type = isinstance(error, PermissionDeniedError | UnauthenticatedError)
    # A refused deletion of several objects is in the body of an answer 200.
    return denied_type or _status(error) in (401, 403) or "AccessDenied" in str(error)


def plain_text(error: Exception) -> str:
    """The text without obstore's debugging output; obstore leaves out URLs that have a signature."""
    return str(error).partition("\n\nDebug source:")[0].strip() or type(error).__name__


def _reason(error: Exception) -> str:
    """The request and its answer, with the service's message in place of its XML."""
    text = plain_text(error)
    request = re.search(
        r"Error performing ([A-Z]+ \S+) in [^-]*- (?:Server returned non-2xx status code: )?(.*)", text, re.S
    )
    if request is not None:
        text = f"{request[1]}: {request[2]}"
    message = re.search(r"<Message>(.*?)</Message>", text, re.S)
    if (code := _code(error)) is not None:
        text = f"{text.partition('<')[0].rstrip(': ')}: {code}" + (f" ({message[1].strip()})" if message else "")
    return " ".join(text.split())
