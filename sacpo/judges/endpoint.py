"""A judge model behind an OpenAI-compatible endpoint: its settings, and single HTTP attempts.

An attempt ends with a preference, with a reply that cannot be parsed, with a failure that can be retried, or with an
error that ends the step. The API key is written only into the request's header.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import secrets
import time
from dataclasses import dataclass
from typing import Any, Literal

import openai

from sacpo.errors import StepError
from sacpo.judges.replies import parse
from sacpo.judges.rubric import PROMPT_VERSION, RESPONSE_FORMAT, messages

RETRY_AFTER_CAP = 300.0  # seconds
OPENAI_URL = "https://api.openai.com/v1"
"""Default address. It is always given to the client, which would otherwise read it from an environment variable, and an
environment variable must not send the key elsewhere."""

ReplyOutcome = Literal["first", "second", "tie", "unparsable", "unavailable"]
"""The preferred answer, or the failure: a reply without a clear preference, or no reply."""


@dataclass(frozen=True)
class Endpoint:
    """A judge model and the settings of its calls.

    Attributes:
        model: Name of the model at the endpoint.
        rubric: Text that explains what makes an answer better.
        revision: Version of the weights, as the user names it; a part of the identity of verdicts.
        base_url: URL of the OpenAI-compatible API, usually ending in /v1; None means OpenAI's own.
        api_key_env: Environment variable that holds the key; None if the endpoint needs no key.
        temperature: Sampling temperature. None sends none, for models that accept only their default.
        max_tokens: Largest number of tokens of a reply; a longer reply is truncated and counts as unparsable.
        seed: Seed that is sent to the endpoint; None sends none.
        concurrency: Largest number of concurrent calls of all processes that share a folder of slots.
        timeout_s: Seconds until an HTTP attempt is given up.
        attempts: Largest number of HTTP attempts of one call.
        price_prompt: Price of a million prompt tokens.
        price_completion: Price of a million completion tokens.
    """

    model: str
    rubric: str
    revision: str = ""
    base_url: str | None = None
    api_key_env: str | None = None
    temperature: float | None = 0.0
    max_tokens: int = 1024
    seed: int | None = None
    concurrency: int = 16
    timeout_s: float = 60.0
    attempts: int = 8
    price_prompt: float = 0.0
    price_completion: float = 0.0

    def identity(self) -> dict[str, Any]:
        """Everything that can change a verdict; the address and the limits of calls cannot."""
        names = ("model", "revision", "temperature", "max_tokens", "seed", "rubric")
        return {"prompt_version": PROMPT_VERSION, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Call:
    """One question to the judge: two answers to a prompt, in the order in which they are shown.

    Attributes:
        prompt: The user's message.
        first: The answer that is shown first.
        second: The answer that is shown second.
        repeat: Number of the call among the calls with the same content.
    """

    prompt: str
    first: str
    second: str
    repeat: int = 0


@dataclass(frozen=True)
class Attempt:
    """Result of one HTTP attempt.

    Attributes:
        outcome: The preference, or the failure.
        raw: The judge's reply, or a description of the failure; without the key.
        retry_after: Seconds that the endpoint asks to wait.
        uncounted: The endpoint refused a parameter that later requests leave out or rename; the attempt does not count
            against the call's limit.
        unreachable: No server listens at the address, or a proxy answered that the server is unavailable.
        prompt_tokens: Prompt tokens that the endpoint reported; 0 if it reported none.
        completion_tokens: Completion tokens that the endpoint reported; 0 if it reported none.
        model: Name of the model in the reply.
        fingerprint: The reply's `system_fingerprint`.
    """

    outcome: ReplyOutcome
    raw: str
    retry_after: float = 0.0
    uncounted: bool = False
    unreachable: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str | None = None
    fingerprint: str | None = None


class Client:
    """Makes HTTP attempts, and learns which parameters the endpoint accepts.

    Attributes:
        endpoint: The endpoint.
        structured: Whether requests ask for a reply that follows the JSON schema.
        quiet_until: Until this time (monotonic clock) the endpoint asked for no requests.

    Raises:
        StepError: the key's environment variable is not set, or its value cannot be a key.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.structured = True
        self.quiet_until = 0.0
        self._schema_accepted = False  # a request with the JSON schema got a reply
        self._length_parameter = "max_tokens"
        self._secret = _secret(endpoint.api_key_env)
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",  # without a key the client would search the environment for one
            base_url=endpoint.base_url or OPENAI_URL,
            timeout=endpoint.timeout_s,
            max_retries=0,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def attempt(self, call: Call) -> Attempt:
        """Make one HTTP attempt.

        Raises:
            StepError: the endpoint refuses the key, the model or a setting, so that every call would fail.
        """
        endpoint = self.endpoint
        nonce = secrets.token_hex(8)  # a new nonce per attempt, so that a deterministic judge gets another text
        optional = {
            "temperature": endpoint.temperature,
            "seed": endpoint.seed,
            "response_format": RESPONSE_FORMAT if self.structured else None,
        }
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": messages(endpoint.rubric, call.prompt, call.first, call.second, nonce),
            self._length_parameter: endpoint.max_tokens,
            **{name: value for name, value in optional.items() if value is not None},
        }
        try:
            async with asyncio.timeout(endpoint.timeout_s):  # the client's own timeout limits each read, not the sum
                response = await self._client.chat.completions.with_raw_response.create(**body)
            return self._read(response.text, call, nonce, body)
        except (TimeoutError, openai.APITimeoutError):
            return Attempt("unavailable", f"no reply within {endpoint.timeout_s:g} s")
        except openai.APIConnectionError as error:
            # By name: openai's HTTP library, whose error this is, depends on openai's version.
            cause = type(error.__cause__).__name__
            return Attempt("unavailable", f"no connection: {cause}", unreachable=cause == "ConnectError")
        except openai.APIStatusError as error:
            refusal = error.response
        # Outside the handler: an error raised inside it would have the request, and with it the key, as its context.
        return self._read_error(refusal.status_code, refusal.text, refusal.headers.get("retry-after"), body)

    def _read(self, text: str, call: Call, nonce: str, request: dict[str, Any]) -> Attempt:
        """Read the body of a reply with status 200."""
        try:
            body = json.loads(text)
            choice = body["choices"][0]
            content = str(choice["message"].get("content") or choice["message"].get("refusal") or "")
            truncated = choice.get("finish_reason") == "length"
            usage = body.get("usage") or {}
            prompt_tokens, completion_tokens = (
                int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")
            )
            model, fingerprint = (body.get(name) for name in ("model", "system_fingerprint"))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Attempt("unavailable", f"the reply is not a chat completion: {self._redacted(text)[:500]}")
        self._schema_accepted |= "response_format" in request
        # The missing end of a truncated reply could have stated another preference.
        preference = None if truncated else parse(content, nonce, (call.prompt, call.first, call.second))
        return Attempt(
            outcome=preference or "unparsable",
            raw=self._redacted(content),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            model=self._redacted(str(model)) if model else None,
            fingerprint=self._redacted(str(fingerprint)) if fingerprint else None,
        )

    def _read_error(self, status: int, text: str, retry_after: str | None, request: dict[str, Any]) -> Attempt:
        """Read an error status: a failure that can be retried, possibly without a parameter.

        Raises:
            StepError: a retry cannot succeed.
        """
        endpoint, message = self.endpoint, self._redacted(text)[:500]
        if status in (408, 409, 429) or status >= 500:
            wait_s = retry_after_seconds(retry_after)
            if status == 429:
                self.quiet_until = max(self.quiet_until, time.monotonic() + wait_s)
            unreachable = status in (502, 503, 504)
            return Attempt("unavailable", f"HTTP {status}: {message}", wait_s, unreachable=unreachable)
        if status in (400, 422):
            if "max_completion_tokens" in text and "max_tokens" in request:  # OpenAI's newer models
                self._length_parameter = "max_completion_tokens"
                return Attempt("unavailable", message, uncounted=True)
            schema_refused = "response_format" in text or "json_schema" in text or not self._schema_accepted
            if "response_format" in request and schema_refused:
                self.structured = False
                return Attempt("unavailable", message, uncounted=True)
        variable = endpoint.api_key_env
        way_out = {
            401: f"check the key in {variable}" if variable else "name the key's environment variable in api_key_env",
            403: f"check the rights of the key in {variable}" if variable else "name a key's variable in api_key_env",
            404: "check base_url, which usually ends in /v1, and the name of the model",
        }.get(status, "check which of the judge's settings the endpoint does not accept")
        raise StepError(
            f"the judge endpoint {endpoint.base_url or OPENAI_URL} refused model {endpoint.model} with HTTP {status} "
            f"({_key_source(variable)}): {way_out}; the endpoint's message was: {message}"
        )

    def _redacted(self, text: str) -> str:
        """The text with the key replaced by [key]."""
        return text.replace(self._secret, "[key]") if self._secret else text


def problem(base_url: str | None, api_key_env: str | None) -> str | None:
    """Check an endpoint by requesting its list of models; the list itself does not matter.

    Returns:
        The reason that the endpoint cannot be used, or None: the key is missing or refused, or no server replies. Other
        HTTP errors are no reason, because some endpoints have no list of models.
    """
    url = base_url or OPENAI_URL
    try:
        secret = _secret(api_key_env)
        with openai.OpenAI(api_key=secret or "none", base_url=url, timeout=10.0, max_retries=2) as client:
            client.models.with_raw_response.list()
    except StepError as error:
        return str(error)
    except openai.APIConnectionError as error:
        cause = type(error.__cause__).__name__
        return f"the judge endpoint {url} cannot be reached ({cause}); check base_url and that the server is running"
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            if api_key_env is None:
                return f"the judge endpoint {url} asks for a key (HTTP {error.status_code}); set api_key_env"
            return f"the judge endpoint {url} refuses the key from {api_key_env} (HTTP {error.status_code})"
    return None


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


def _key_source(variable: str | None) -> str:
    return f"key from {variable}" if variable else "sent without a key"


def _secret(variable: str | None) -> str | None:
    """The key from the environment variable; None without a variable.

    Raises:
        StepError: the variable is not set, or its value cannot be a key.
    """
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise StepError(
            f"the judge needs its key in the environment variable {variable}, which is not set where the step runs: "
            "set it before you start the sweep, or set api_key_env: null if the endpoint needs no key"
        )
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise StepError(
            f"the environment variable {variable} holds characters that no key has: only printable ASCII characters "
            "other than spaces are allowed; check how the key was copied"
        )
    return secret
