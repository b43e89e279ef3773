"""One chat completion of an OpenAI-compatible endpoint: single HTTP attempts, and what an endpoint's errors mean.

An attempt ends with a reply, with a failure that can be retried, with a refusal of this one call, or with an error that
ends the step. What is asked and how a reply is read differ: judges are in `sacpo.judges.endpoint`, policies that are
served elsewhere in `sacpo.judges.answers`. The API key is written only into the request's header.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar

import openai

from sacpo.errors import StepError
from sacpo.judges.completions import Completion, embedded_error, printable, read_completion
from sacpo.judges.keys import key_source, secret_from
from sacpo.judges.ledger import QuotaExceeded
from sacpo.judges.refusals import Refusal, read_error, retry_after_seconds
from sacpo.judges.token_probabilities import VerdictProbabilities
from sacpo.spaces.endpoint import EndpointSettings

UNKNOWN_REFUSALS = 3
"""Fewest calls, and at least those in flight, that an endpoint refuses for unknown reasons before it has answered any;
then the settings are taken to be wrong."""
OPENAI_URL = "https://api.openai.com/v1"
"""Default address. It is always given to the client, which would otherwise read it from an environment variable, and an
environment variable must not send the key elsewhere."""

ReplyOutcome = Literal["first", "second", "tie", "answer", "unparsable", "unavailable"]
"""The preferred answer, or that the reply is an answer; or the failure: a reply without a clear preference, or no
reply."""


@dataclass(frozen=True)
class Connection:
    """How an endpoint is reached, and the limits of its calls.

    Attributes:
        model: Name of the model at the endpoint.
        revision: Version of the weights, as the user names it; a part of the identity of replies.
        base_url: URL of the OpenAI-compatible API, usually ending in /v1; None means OpenAI's own.
        api_key_env: Environment variable that holds the key; None if the endpoint needs no key.
        concurrency: Largest number of concurrent calls of all processes that share a folder of slots.
        timeout_s: Seconds until an HTTP attempt is given up.
        attempts: Largest number of HTTP attempts of one call.
        price_prompt: Price of a million prompt tokens.
        price_completion: Price of a million completion tokens.
    """

    model: str
    _: KW_ONLY
    revision: str = ""
    base_url: str | None = None
    api_key_env: str | None = None
    concurrency: int = 16
    timeout_s: float = 60.0
    attempts: int = 8
    price_prompt: float = 0.0
    price_completion: float = 0.0

    @property
    def address(self) -> dict[str, Any]:
        """What the limits of calls are counted for."""
        return {"model": self.model, "base_url": self.base_url}

    @property
    def prices(self) -> tuple[float, float]:
        """Price of a million prompt tokens and of a million completion tokens."""
        return self.price_prompt, self.price_completion


def connection_fields(settings: EndpointSettings) -> dict[str, Any]:
    """The fields of `Connection` as a space sets them; a price that is unknown is 0."""
    calls = settings.calls
    return {
        **settings.model_dump(include={"model", "revision", "base_url", "api_key_env"}),
        "concurrency": calls.concurrency,
        "timeout_s": calls.timeout,
        "attempts": calls.attempts,
        "price_prompt": calls.price_prompt or 0.0,
        "price_completion": calls.price_completion or 0.0,
    }


@dataclass(frozen=True)
class Attempt:
    """Result of one HTTP attempt.

    Attributes:
        outcome: The preference, an answer, or the failure.
        raw: The reply, or a description of the failure; without the key.
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
        cut: The reply ended at the limit of tokens.
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
    cut: bool = False


C = TypeVar("C", bound=Hashable)


class ChatClient(ABC, Generic[C]):
    """Makes HTTP attempts at calls of one kind, and learns which parameters the endpoint accepts.

    Attributes:
        connection: How the endpoint is reached.
        left_out: Parameters that the endpoint refused, so that requests leave them out: `temperature`, `seed`, `top_p`,
            `response_format`, `max_tokens`, or `system` for the role of the instructions.
        accepted: The endpoint has answered a request with these settings.
        quiet_until: Until this time (monotonic clock) the endpoint asked for no requests.
        length_parameter: Name under which the limit of tokens is sent.
        owner: What the endpoint is to the sweep, for errors.
        kept: What is stored of its replies, for errors.

    Raises:
        StepError: the key's environment variable is not set, or its value cannot be a key.
    """

    owner: ClassVar[str]
    kept: ClassVar[str]

    def __init__(self, connection: Connection, accepted: bool = False) -> None:
        self.connection = connection
        self.left_out: set[str] = set()
        self.accepted = accepted
        self.quiet_until = 0.0
        self._schema_accepted = False  # a request with a reply format got a reply
        self.length_parameter = "max_tokens"
        self._unknown: dict[C, StepError] = {}  # calls that were refused for unknown reasons
        self._secret = secret_from(connection.api_key_env)
        self._client = openai.AsyncOpenAI(
            api_key=self._secret or "none",  # without a key the client would search the environment for one
            base_url=connection.base_url or OPENAI_URL,
            timeout=connection.timeout_s,
            max_retries=0,
        )

    @property
    def structured(self) -> bool:
        """Whether requests ask for a reply that follows a JSON schema."""
        return False

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def attempt(self, call: C) -> Attempt:
        """Make one HTTP attempt.

        Raises:
            StepError: the endpoint refuses the key, the model or a setting, so that every call would fail.
            QuotaExceeded: the account has no credit left.
        """
        timeout_s = self.connection.timeout_s
        nonce = self._nonce()
        body = self._body(call, nonce)
        try:
            async with asyncio.timeout(timeout_s):  # the client's own timeout limits each read, not the sum
                response = await self._client.chat.completions.with_raw_response.create(**body)
            status: int | None = 200
            text, headers = response.text, response.headers
        except (TimeoutError, openai.APITimeoutError):
            return Attempt("unavailable", f"no reply within {timeout_s:g} s")
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
                return self._read_body(text, call, nonce, body)
            status, text = error_in_reply
        return self._read_error(status, text, headers.get("retry-after"), call, body)

    def check_refusals(self) -> None:
        """Raises StepError if the endpoint refused calls for unknown reasons and answered none."""
        if self._unknown and not self.accepted:
            raise next(iter(self._unknown.values()))

    def _nonce(self) -> str:
        """A token of the attempt, for calls that need one."""
        return ""

    @abstractmethod
    def _body(self, call: C, nonce: str) -> dict[str, Any]:
        """The request without the parameters that are left out."""

    @abstractmethod
    def _read(self, reply: Completion, call: C, nonce: str, request: dict[str, Any]) -> Attempt:
        """Read a reply."""

    @abstractmethod
    def _shown(self, call: C) -> Sequence[str]:
        """The texts of a call, which some endpoints repeat in their errors."""

    def _read_body(self, text: str, call: C, nonce: str, request: dict[str, Any]) -> Attempt:
        """Read the body of a reply with status 200."""
        try:
            reply = read_completion(text)
        except ValueError:
            message = printable(self.redacted(text)[:500])
            return Attempt("unavailable", f"the reply is not a chat completion: {message}")
        self.accepted = True
        self._schema_accepted |= "response_format" in request
        return self._read(reply, call, nonce, request)

    def _leave_out(self, parameter: str, message: str) -> None:
        """Send later requests without a parameter, or under its newer name.

        Raises:
            StepError: the calls are of no use without it.
        """
        if parameter == "max_tokens":
            self.length_parameter = "max_completion_tokens"
        else:
            self.left_out.add(parameter)

    def _read_error(
        self, status: int | None, text: str, retry_after: str | None, call: C, request: dict[str, Any]
    ) -> Attempt:
        """Read an error status: a failure that can be retried, possibly without a parameter, or this call's refusal.

        Raises:
            StepError: every call would fail.
            QuotaExceeded: the account has no credit left.
        """
        message = printable(self.redacted(text)[:500])
        answer = f"HTTP {status}" if status else "an error in a reply with HTTP 200"
        error = read_error(status, text, request, self._shown(call), self.accepted)
        refusal = error.refusal
        is_format = status != 403 and "response_format" in request and not self._schema_accepted
        if refusal is Refusal.UNKNOWN and is_format:
            self.left_out.add("response_format")  # the parameter that most endpoints lack
            return Attempt("unavailable", message, uncounted=True)
        if refusal is Refusal.PARAMETER:
            self._leave_out(error.parameter, message)
            return Attempt("unavailable", message, uncounted=True)
        if refusal is Refusal.RETRY:
            wait_s = retry_after_seconds(retry_after)
            if status == 429:
                self.quiet_until = max(self.quiet_until, time.monotonic() + wait_s)
            unreachable = status in (502, 503, 504)
            return Attempt("unavailable", f"{answer}: {message}", wait_s, unreachable=unreachable)
        if refusal is Refusal.QUOTA:
            raise QuotaExceeded(
                f"the quota of the account at the {self.owner} endpoint {self.connection.base_url or OPENAI_URL} is "
                f"used up ({answer}); the {self.kept} so far are stored: add credit and run the same command to "
                "continue; "
                f"the endpoint's message was: {message}"
            )
        if refusal is Refusal.UNKNOWN and not self.accepted:
            self._unknown[call] = self._refused(status, answer, message)
            if len(self._unknown) >= max(UNKNOWN_REFUSALS, self.connection.concurrency):  # not only the first to arrive
                self.check_refusals()
        if refusal is Refusal.CONFIGURATION:
            raise self._refused(status, answer, message, error.parameter)
        return Attempt("unavailable", f"refused with {answer}: {message}", final=True, refused=True)

    def _refused(self, status: int | None, answer: str, message: str, parameter: str = "") -> StepError:
        """The error of an endpoint that refuses every call, perhaps for the value of a parameter."""
        connection, variable = self.connection, self.connection.api_key_env
        way_out = {
            401: f"check the key in {variable}" if variable else "name the key's environment variable in api_key_env",
            403: f"check the rights of the key in {variable}" if variable else "name a key's variable in api_key_env",
            404: "check base_url, which usually ends in /v1, and the name of the model",
        }.get(status or 0, f"check which of the {self.owner}'s settings the endpoint does not accept")
        if parameter:
            way_out = f"it does not take this value of the {self.owner}'s {parameter}; give another, or null for none"
        return StepError(
            f"the {self.owner} endpoint {connection.base_url or OPENAI_URL} refused model {connection.model} with "
            f"{answer} ({key_source(variable)}): {way_out}; the endpoint's message was: {message}"
        )

    def redacted(self, text: str) -> str:
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
        return f"the endpoint {url} cannot be reached ({cause}); check base_url and that the server is running"
    except openai.APIStatusError as error:
        if error.status_code in (401, 403):
            if api_key_env is None:
                return f"the endpoint {url} asks for a key (HTTP {error.status_code}); set api_key_env"
            return f"the endpoint {url} refuses the key from {api_key_env} (HTTP {error.status_code})"
    return None
