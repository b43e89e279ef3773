"""A judge model behind an OpenAI-compatible endpoint: its settings, and single HTTP attempts.

An attempt ends with a preference, with a reply that cannot be parsed, with a failure that can be retried, with a
refusal of this one call, or with an error that ends the step. The API key is written only into the request's header.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, fields
from typing import Any, Literal

import openai

from sacpo.errors import StepError
from sacpo.judges.completions import Completion, embedded_error, printable, read_completion
from sacpo.judges.keys import key_source, secret_from
from sacpo.judges.ledger import QuotaExceeded
from sacpo.judges.no_verdict import explain
from sacpo.judges.refusals import SYSTEM, Refusal, read_error, retry_after_seconds
from sacpo.judges.replies import PREFERENCES, Preference, parse
from sacpo.judges.rubric import PROMPT_VERSION, messages, response_format
from sacpo.judges.token_probabilities import TOP_LOGPROBS, VerdictProbabilities, verdict_probabilities

NO_PROBABILITIES = "the probability of the verdict is not known: its token is not found, or more likely says no verdict"
UNKNOWN_REFUSALS = 3
"""Fewest calls, and at least those in flight, that an endpoint refuses for unknown reasons before it has answered any;
then the settings are taken to be wrong."""
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
        max_tokens: Largest number of tokens of a reply, thoughts included; a longer reply is truncated and counts as
            unparsable. None sends none.
        seed: Seed that is sent to the endpoint; None sends none.
        response_format: Whether a reply that follows a JSON schema is asked for.
        system_role: Role of the message with the instructions; None puts them into the user's message.
        reasons: Whether the judge writes its reasons before the verdict.
        probabilities: Whether the probability of each verdict is read from the reply's token log-probabilities.
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
    max_tokens: int | None = 1024
    seed: int | None = None
    response_format: bool = True
    system_role: str | None = "system"
    reasons: bool = True
    probabilities: bool = False
    concurrency: int = 16
    timeout_s: float = 60.0
    attempts: int = 8
    price_prompt: float = 0.0
    price_completion: float = 0.0

    def identity(self) -> dict[str, Any]:
        """Everything that can change a verdict; the address and the limits of calls cannot."""
        names = ("model", "revision", "temperature", "max_tokens", "seed", "rubric")
        newer = ("response_format", "system_role", "reasons", "probabilities")
        later = {field.name: field.default for field in fields(self) if field.name in newer}
        changed = [name for name, default in later.items() if getattr(self, name) != default]
        return {"prompt_version": PROMPT_VERSION, **{name: getattr(self, name) for name in (*names, *changed)}}


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
        final: Another attempt at the same call cannot help.
        refused: The endpoint refuses this call for its content or its length.
        prompt_tokens: Prompt tokens that the endpoint reported; 0 if it reported none.
        completion_tokens: Completion tokens that the endpoint reported; 0 if it reported none.
        model: Name of the model in the reply.
        fingerprint: The reply's `system_fingerprint`.
        probabilities: Probability of each verdict, where it was asked for.
    """

    outcome: ReplyOutcome
    raw: str
    retry_after: float = 0.0
    uncounted: bool = False
    unreachable: bool = False
    final: bool = False
    refused: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str | None = None
    fingerprint: str | None = None
    probabilities: VerdictProbabilities | None = None


class Client:
    """Makes HTTP attempts, and learns which parameters the endpoint accepts.

    Attributes:
        endpoint: The endpoint.
        left_out: Parameters that the endpoint refused, so that requests leave them out: `temperature`, `seed`,
            `response_format`, `max_tokens`, or `system` for the role of the instructions.
        accepted: The endpoint has answered a request with these settings.
        quiet_until: Until this time (monotonic clock) the endpoint asked for no requests.

    Raises:
        StepError: the key's environment variable is not set, or its value cannot be a key.
    """

    def __init__(self, endpoint: Endpoint, accepted: bool = False) -> None:
        self.endpoint = endpoint
        self.left_out: set[str] = set()
        self.accepted = accepted
        self.quiet_until = 0.0
        self._schema_accepted = False  # a request with the JSON schema got a reply
        self._gave_tokens = accepted  # stored replies have probabilities
        self._length_parameter = "max_tokens"
        self._unknown: dict[Call, StepError] = {}  # calls that were refused for unknown reasons
        self._secret = secret_from(endpoint.api_key_env)
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",  # without a key the client would search the environment for one
            base_url=endpoint.base_url or OPENAI_URL,
            timeout=endpoint.timeout_s,
            max_retries=0,
        )

    @property
    def structured(self) -> bool:
        """Whether requests ask for a reply that follows the JSON schema."""
        return self.endpoint.response_format and "response_format" not in self.left_out

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def attempt(self, call: Call) -> Attempt:
        """Make one HTTP attempt.

        Raises:
            StepError: the endpoint refuses the key, the model or a setting, so that every call would fail.
            QuotaExceeded: the account has no credit left.
        """
        endpoint = self.endpoint
        nonce = secrets.token_hex(8)  # a new nonce per attempt, so that a deterministic judge gets another text
        body = self._body(call, nonce)
        try:
            async with asyncio.timeout(endpoint.timeout_s):  # the client's own timeout limits each read, not the sum
                response = await self._client.chat.completions.with_raw_response.create(**body)
            status: int | None = 200
            text, headers = response.text, response.headers
        except (TimeoutError, openai.APITimeoutError):
            return Attempt("unavailable", f"no reply within {endpoint.timeout_s:g} s")
        except openai.APIConnectionError as error:
            # By name: openai's HTTP library, whose error this is, depends on openai's version.
            cause = type(error.__cause__).__name__
            return Attempt("unavailable", f"no connection: {cause}", unreachable=cause == "ConnectError")
        except openai.APIStatusError as error:
            status, text, headers = error.response.status_code, error.response.text, error.response.headers
        # Outside the handler: an error raised inside it would have the request, and with it the key, as its context.
        if status == 200:
            error_in_reply = embedded_error(text)
            if error_in_reply is None:
                return self._read(text, call, nonce, body)
            status, text = error_in_reply
        return self._read_error(status, text, headers.get("retry-after"), call, body)

    def check_refusals(self) -> None:
        """Raises StepError if the endpoint refused calls for unknown reasons and answered none."""
        if self._unknown and not self.accepted:
            raise next(iter(self._unknown.values()))

    def _body(self, call: Call, nonce: str) -> dict[str, Any]:
        """The request without the parameters that are left out."""
        endpoint = self.endpoint
        role = None if SYSTEM in self.left_out else endpoint.system_role
        optional = {
            "temperature": endpoint.temperature,
            "seed": endpoint.seed,
            "response_format": response_format(endpoint.reasons) if endpoint.response_format else None,
            self._length_parameter: endpoint.max_tokens,
            "logprobs": endpoint.probabilities or None,
            "top_logprobs": TOP_LOGPROBS if endpoint.probabilities else None,
        }
        return {
            "model": endpoint.model,
            "messages": messages(
                endpoint.rubric, call.prompt, call.first, call.second, nonce, role, reasons=endpoint.reasons
            ),
            **{name: value for name, value in optional.items() if value is not None and name not in self.left_out},
        }

    def _read(self, text: str, call: Call, nonce: str, request: dict[str, Any]) -> Attempt:
        """Read the body of a reply with status 200."""
        try:
            reply = read_completion(text)
        except ValueError:
            message = printable(self._redacted(text)[:500])
            return Attempt("unavailable", f"the reply is not a chat completion: {message}")
        self.accepted = True
        self._schema_accepted |= "response_format" in request
        # The missing end of a reply that was cut or broken off could have stated another preference.
        is_whole = not (reply.cut or reply.broken_off)
        preference = parse(reply.content, nonce, (call.prompt, call.first, call.second)) if is_whole else None
        outcome: ReplyOutcome = preference or ("unavailable" if reply.refusal else "unparsable")
        raw, final, uncounted = reply.content, False, False
        if preference is None:
            reason = explain(reply, self.endpoint.max_tokens, "response_format" in request)
            raw, final, uncounted = reason.raw, reason.final, reason.give_up_format
            self.left_out |= {"response_format"} if reason.give_up_format else set()
        probabilities = None
        if preference is not None and self.endpoint.probabilities:
            outcome, probabilities = self._probable(reply, preference)
            if outcome not in PREFERENCES:
                raw = f"{NO_PROBABILITIES}; the reply was: {raw}"
        return Attempt(
            outcome=outcome,
            raw=self._redacted(raw),
            uncounted=uncounted,
            final=final,
            refused=preference is None and bool(reply.refusal),
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            model=self._redacted(reply.model) if reply.model else None,
            fingerprint=self._redacted(reply.fingerprint) if reply.fingerprint else None,
            probabilities=probabilities,
        )

    def _probable(self, reply: Completion, preference: Preference) -> tuple[ReplyOutcome, VerdictProbabilities | None]:
        """The most probable verdict, and the probability of each.

        Raises:
            StepError: the endpoint gives no token log-probabilities.
        """
        if reply.tokens is None and not self._gave_tokens:
            raise self._without_probabilities("its reply has none")
        self._gave_tokens = True
        probabilities = verdict_probabilities(reply.tokens or [], preference)
        if probabilities is None or probabilities.none > 0.5:
            return "unparsable", None
        return probabilities.most_probable, probabilities

    def _without_probabilities(self, reason: str) -> StepError:
        return StepError(
            f"the judge endpoint {self.endpoint.base_url or OPENAI_URL} gives no token log-probabilities of model "
            f"{self.endpoint.model} (logprobs, top_logprobs), which verdicts: probabilities needs: set verdicts: "
            f"outcomes, or use an endpoint and a model that give them; {reason}"
        )

    def _read_error(
        self, status: int | None, text: str, retry_after: str | None, call: Call, request: dict[str, Any]
    ) -> Attempt:
        """Read an error status: a failure that can be retried, possibly without a parameter, or this call's refusal.

        Raises:
            StepError: every call would fail.
            QuotaExceeded: the account has no credit left.
        """
        message = printable(self._redacted(text)[:500])
        answer = f"HTTP {status}" if status else "an error in a reply with HTTP 200"
        shown = (call.prompt, call.first, call.second, self.endpoint.rubric)
        error = read_error(status, text, request, shown, self.accepted)
        refusal = error.refusal
        is_format = status != 403 and "response_format" in request and not self._schema_accepted
        if refusal is Refusal.UNKNOWN and is_format:
            self.left_out.add("response_format")  # the parameter that most endpoints lack
            return Attempt("unavailable", message, uncounted=True)
        if refusal is Refusal.PARAMETER:
            if error.parameter == "logprobs":
                raise self._without_probabilities(f"the endpoint's message was: {message}")
            if error.parameter == "max_tokens":
                self._length_parameter = "max_completion_tokens"
            else:
                self.left_out.add(error.parameter)
            return Attempt("unavailable", message, uncounted=True)
        if refusal is Refusal.RETRY:
            wait_s = retry_after_seconds(retry_after)
            if status == 429:
                self.quiet_until = max(self.quiet_until, time.monotonic() + wait_s)
            unreachable = status in (502, 503, 504)
            return Attempt("unavailable", f"{answer}: {message}", wait_s, unreachable=unreachable)
        if refusal is Refusal.QUOTA:
            raise QuotaExceeded(
                f"the quota of the account at the judge endpoint {self.endpoint.base_url or OPENAI_URL} is used up "
                f"({answer}); the verdicts so far are stored: add credit and run the same command to continue; "
                f"the endpoint's message was: {message}"
            )
        if refusal is Refusal.UNKNOWN and not self.accepted:
            self._unknown[call] = self._refused(status, answer, message)
            if len(self._unknown) >= max(UNKNOWN_REFUSALS, self.endpoint.concurrency):  # not only the first to arrive
                self.check_refusals()
        if refusal is Refusal.CONFIGURATION:
            raise self._refused(status, answer, message)
        return Attempt("unavailable", f"refused with {answer}: {message}", final=True, refused=True)

    def _refused(self, status: int | None, answer: str, message: str) -> StepError:
        """The error of an endpoint that refuses every call."""
        endpoint, variable = self.endpoint, self.endpoint.api_key_env
        way_out = {
            401: f"check the key in {variable}" if variable else "name the key's environment variable in api_key_env",
            403: f"check the rights of the key in {variable}" if variable else "name a key's variable in api_key_env",
            404: "check base_url, which usually ends in /v1, and the name of the model",
        }.get(status or 0, "check which of the judge's settings the endpoint does not accept")
        return StepError(
            f"the judge endpoint {endpoint.base_url or OPENAI_URL} refused model {endpoint.model} with {answer} "
            f"({key_source(variable)}): {way_out}; the endpoint's message was: {message}"
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
        secret = secret_from(api_key_env)
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
