"""A judge model behind an OpenAI-compatible endpoint: its settings, what it is asked, and how its replies are read."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from sacpo.errors import StepError
from sacpo.judges.chat_client import OPENAI_URL, Attempt, ChatClient, Connection, ReplyOutcome
from sacpo.judges.completions import Completion
from sacpo.judges.no_verdict import explain
from sacpo.judges.refusals import SYSTEM
from sacpo.judges.replies import PREFERENCES, Preference, parse
from sacpo.judges.rubric import PROMPT_VERSION, messages, response_format
from sacpo.judges.token_probabilities import TOP_LOGPROBS, VerdictProbabilities, verdict_probabilities

NO_PROBABILITIES = "the probability of the verdict is not known: its token is not found, or more likely says no verdict"


@dataclass(frozen=True)
class Endpoint(Connection):
    """A judge model and the settings of its calls.

    Attributes:
        rubric: Text that explains what makes an answer better.
        temperature: Sampling temperature. None sends none, for models that accept only their default.
        max_tokens: Largest number of tokens of a reply, thoughts included; a longer reply is truncated and counts as
            unparsable. None sends none.
        seed: Seed that is sent to the endpoint; None sends none.
        response_format: Whether a reply that follows a JSON schema is asked for.
        system_role: Role of the message with the instructions; None puts them into the user's message.
        reasons: Whether the judge writes its reasons before the verdict.
        probabilities: Whether the probability of each verdict is read from the reply's token log-probabilities.
    """

    rubric: str
    temperature: float | None = 0.0
    max_tokens: int | None = 1024
    seed: int | None = None
    response_format: bool = True
    system_role: str | None = "system"
    reasons: bool = True
    probabilities: bool = False

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


class Client(ChatClient[Call]):
    """Asks a judge which of two answers is better.

    Attributes:
        endpoint: The endpoint.
    """

    owner: ClassVar[str] = "judge"
    kept: ClassVar[str] = "verdicts"

    def __init__(self, endpoint: Endpoint, accepted: bool = False) -> None:
        super().__init__(endpoint, accepted)
        self.endpoint = endpoint
        self._gave_tokens = accepted  # stored replies have probabilities

    @property
    def structured(self) -> bool:
        """Whether requests ask for a reply that follows the JSON schema."""
        return self.endpoint.response_format and "response_format" not in self.left_out

    def _nonce(self) -> str:
        """A new token per attempt, so that a deterministic judge gets another text."""
        return secrets.token_hex(8)

    def _shown(self, call: Call) -> Sequence[str]:
        """The texts of a call, which some endpoints repeat in their errors."""
        return call.prompt, call.first, call.second, self.endpoint.rubric

    def _body(self, call: Call, nonce: str) -> dict[str, Any]:
        """The request without the parameters that are left out."""
        endpoint = self.endpoint
        role = None if SYSTEM in self.left_out else endpoint.system_role
        optional = {
            "temperature": endpoint.temperature,
            "seed": endpoint.seed,
            "response_format": response_format(endpoint.reasons) if endpoint.response_format else None,
            self.length_parameter: endpoint.max_tokens,
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

    def _read(self, reply: Completion, call: Call, nonce: str, request: dict[str, Any]) -> Attempt:
        """The judge's preference, or why the reply has none."""
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
            raw=self.redacted(raw),
            uncounted=uncounted,
            final=final,
            refused=preference is None and bool(reply.refusal),
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            model=self.redacted(reply.model) if reply.model else None,
            fingerprint=self.redacted(reply.fingerprint) if reply.fingerprint else None,
            probabilities=probabilities,
            cut=reply.cut,
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

    def _leave_out(self, parameter: str, message: str) -> None:
        """Send later requests without a parameter, or under its newer name.

        Raises:
            StepError: the probabilities of verdicts are needed, and the endpoint gives none.
        """
        if parameter == "logprobs":
            raise self._without_probabilities(f"the endpoint's message was: {message}")
        super()._leave_out(parameter, message)
