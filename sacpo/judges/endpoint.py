"""A judge model behind an OpenAI-compatible endpoint: how it is reached, and one HTTP attempt at a verdict.

What the endpoint answers is sorted here into a verdict, a reply without one, a failure worth another try, and a refusal
that ends the step. The key goes into the request's header and nowhere else.
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
VENDOR = "https://api.openai.com/v1"  # said here: the client would let an environment variable send the key elsewhere

Outcome = Literal["first", "second", "tie", "unparsable", "unavailable"]


@dataclass(frozen=True)
class Endpoint:
    """A judge model and how it is reached.

    Args:
        model: The name by which the endpoint knows it.
        rubric: What makes an answer better: the text itself.
        revision: Names the weights' version; for the record and the key of verdicts only.
        base_url: Of the OpenAI-compatible API, mostly ending in /v1; none: the vendor's.
        api_key_env: Name of the environment variable that holds the key; none: the endpoint needs none.
        temperature: None leaves it to the endpoint, for models that take no other than theirs.
        max_tokens: Tokens of a reply; a longer one is cut and counts as unparsable.
        seed: None sends none.
        concurrency: Calls under way at once, over all processes that share a slots folder.
        timeout_s: Seconds that one HTTP attempt may take.
        attempts: HTTP attempts that one call may take.
        price_prompt: Of a million prompt tokens.
        price_completion: Of a million completion tokens.
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
        """What can change a verdict: not where the model runs, nor how fast it is asked."""
        names = ("model", "revision", "temperature", "max_tokens", "seed", "rubric")
        return {"prompt_version": PROMPT_VERSION, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True)
class Call:
    """One verdict to get: two answers to a prompt, in the order in which they are shown."""

    prompt: str
    first: str
    second: str
    repeat: int = 0


@dataclass(frozen=True)
class Attempt:
    """What came of one HTTP attempt.

    Args:
        outcome: A verdict, or why there is none.
        raw: The judge's reply, or what came in its place; without the key.
        retry_after: Seconds that the endpoint asks to wait.
        free: The request was refused for a parameter that is left out from now on: not one of the call's attempts.
        away: Nobody listens there, or something before the endpoint answered in its place.
        prompt_tokens: As far as the endpoint said.
        completion_tokens: The same.
        model: The name that the endpoint gave for the model.
        fingerprint: Its `system_fingerprint`.
    """

    outcome: Outcome
    raw: str
    retry_after: float = 0.0
    free: bool = False
    away: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str | None = None
    fingerprint: str | None = None


class Client:
    """Makes HTTP attempts, and learns which parameters the endpoint takes.

    Args:
        endpoint: The endpoint.

    Raises:
        StepError: the key's environment variable is not set, or holds what cannot be a key.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.structured = True  # a reply format is asked for
        self.quiet_until = 0.0  # on the monotonic clock: the endpoint asked everybody for silence
        self._accepted = False  # a reply came to a request with a reply format
        self._limit = "max_tokens"
        self._secret = _secret(endpoint.api_key_env)
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",  # the client insists on one, and would look for it in the environment
            base_url=endpoint.base_url or VENDOR,
            timeout=endpoint.timeout_s,
            max_retries=0,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def attempt(self, call: Call) -> Attempt:
        """Ask once.

        Raises:
            StepError: the endpoint refuses what every call asks for.
        """
        endpoint = self.endpoint
        nonce = secrets.token_hex(8)  # of this attempt: a judge that never varies gets another text to answer
        optional = {
            "temperature": endpoint.temperature,
            "seed": endpoint.seed,
            "response_format": RESPONSE_FORMAT if self.structured else None,
        }
        body: dict[str, Any] = {
            "model": endpoint.model,
            "messages": messages(endpoint.rubric, call.prompt, call.first, call.second, nonce),
            self._limit: endpoint.max_tokens,
            **{name: value for name, value in optional.items() if value is not None},
        }
        try:
            async with asyncio.timeout(endpoint.timeout_s):  # the client's own bounds each read, not the whole
                response = await self._client.chat.completions.with_raw_response.create(**body)
            return self._read(response.text, call, nonce, body)
        except (TimeoutError, openai.APITimeoutError):
            return Attempt("unavailable", f"no reply within {endpoint.timeout_s:g} s")
        except openai.APIConnectionError as error:
            why = type(error.__cause__).__name__
            return Attempt("unavailable", f"no connection: {why}", away=why == "ConnectError")
        except openai.APIStatusError as error:
            refusal = error.response
        # Outside the handler: an error raised in it would carry the request, and the key with it.
        return self._refused(refusal.status_code, refusal.text, refusal.headers.get("retry-after"), body)

    def _read(self, text: str, call: Call, nonce: str, asked: dict[str, Any]) -> Attempt:
        """What a reply with status 200 says."""
        try:
            body = json.loads(text)
            choice = body["choices"][0]
            content = str(choice["message"].get("content") or choice["message"].get("refusal") or "")
            cut = choice.get("finish_reason") == "length"
            usage = body.get("usage") or {}
            prompt_tokens, completion_tokens = (
                int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")
            )
            model, fingerprint = (body.get(name) for name in ("model", "system_fingerprint"))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return Attempt("unavailable", f"a body that is no chat completion: {self._redacted(text)[:500]}")
        self._accepted |= "response_format" in asked
        # What a cut reply lacks might have been another verdict.
        verdict = None if cut else parse(content, nonce, (call.prompt, call.first, call.second))
        return Attempt(
            outcome=verdict or "unparsable",
            raw=self._redacted(content),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            model=self._redacted(str(model)) if model else None,
            fingerprint=self._redacted(str(fingerprint)) if fingerprint else None,
        )

    def _refused(self, status: int, text: str, retry_after: str | None, asked: dict[str, Any]) -> Attempt:
        """What an error status means: another try, later or without a parameter, or the end."""
        endpoint, said = self.endpoint, self._redacted(text)[:500]
        if status in (408, 409, 429) or status >= 500:
            wait = seconds(retry_after)
            if status == 429:
                self.quiet_until = max(self.quiet_until, time.monotonic() + wait)
            return Attempt("unavailable", f"HTTP {status}: {said}", wait, away=status in (502, 503, 504))
        if status in (400, 422):
            if "max_completion_tokens" in text and "max_tokens" in asked:  # the vendor's newer models
                self._limit = "max_completion_tokens"
                return Attempt("unavailable", said, free=True)
            blamed = "response_format" in text or "json_schema" in text or not self._accepted
            if "response_format" in asked and blamed:
                self.structured = False
                return Attempt("unavailable", said, free=True)
        variable = endpoint.api_key_env
        way_out = {
            401: f"check the key in {variable}" if variable else "name the key's environment variable in api_key_env",
            403: f"check what the key in {variable} may use" if variable else "name a key's variable in api_key_env",
            404: "check base_url, which mostly ends in /v1, and the model's name",
        }.get(status, "check the judge's settings against what the endpoint takes")
        raise StepError(
            f"the judge endpoint {endpoint.base_url or VENDOR} refused model {endpoint.model} with HTTP {status} "
            f"(key from {variable or 'nowhere'}): {way_out}; it said: {said}"
        )

    def _redacted(self, text: str) -> str:
        return text.replace(self._secret, "[key]") if self._secret else text


def problem(base_url: str | None, api_key_env: str | None) -> str | None:
    """What keeps an endpoint from being used, or none: a look at its list of models, whatever that says."""
    where = base_url or VENDOR
    try:
        secret = _secret(api_key_env)
        with openai.OpenAI(api_key=secret or "none", base_url=where, timeout=10.0, max_retries=2) as client:
            client.models.with_raw_response.list()
    except StepError as error:
        return str(error)
    except openai.APIConnectionError as error:
        return f"the judge endpoint {where} cannot be reached ({type(error.__cause__).__name__}); is base_url right?"
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            return (
                f"the judge endpoint {where} refuses the key from {api_key_env or 'nowhere'} (HTTP {error.status_code})"
            )
    return None


def seconds(retry_after: str | None) -> float:
    """How long a Retry-After header asks to wait, as seconds or as a date; 0 without one that makes sense."""
    if retry_after is None:
        return 0.0
    try:
        wait = float(retry_after)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(wait, RETRY_AFTER_CAP) if wait > 0 else 0.0


def _secret(variable: str | None) -> str | None:
    """The key, out of the environment.

    Raises:
        StepError: the variable is not set, or holds what cannot be a key.
    """
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise StepError(
            f"the judge needs its key in the environment variable {variable}, which is not set where the step runs: "
            "set it before the sweep is started, or put api_key_env: null if it needs none"
        )
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise StepError(f"the environment variable {variable} holds characters that no key has")
    return secret
