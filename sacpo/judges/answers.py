"""Answers of a policy that is served elsewhere, behind an OpenAI-compatible endpoint.

Every answer is written to the ledger at once, so a run that stops loses none that was paid for. A call that the
endpoint refuses for its content or its length has no answer, and its refusal concerns no other call.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sacpo.hashing import canonical, content_id
from sacpo.judges.call_batch import CallStats, Reply, replies_to
from sacpo.judges.chat_client import Attempt, ChatClient, Connection, connection_fields
from sacpo.judges.completions import Completion
from sacpo.judges.ledger import ANSWER, Ledger, Meter
from sacpo.judges.llm import refuse_cut_prompts
from sacpo.judges.thoughts import without_thoughts
from sacpo.judges.truncation import text_size
from sacpo.spaces.evaluation import Generation
from sacpo.spaces.served import ServedPolicy


@dataclass(frozen=True)
class AnswerEndpoint(Connection):
    """A served policy and the settings of its calls.

    Attributes:
        max_tokens: Largest number of tokens of an answer.
        temperature: Sampling temperature.
        top_p: Probability mass of nucleus sampling; 1 sends none.
        seed: Seed of each prompt's first sample; that of sample n is seed + n.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def sampling(self) -> dict[str, Any]:
        """The parameters that decide how an answer is drawn, as they are requested."""
        top_p = {} if self.top_p == 1 or self.temperature == 0 else {"top_p": self.top_p}
        return {"temperature": self.temperature, **top_p, "seed": self.seed, "max_tokens": self.max_tokens}

    def identity(self) -> dict[str, Any]:
        """Everything that can change an answer; the address and the limits of calls cannot."""
        return {"model": self.model, "revision": self.revision, **self.sampling()}


@dataclass(frozen=True)
class Question:
    """A prompt, and the number of the answer among the samples of this prompt."""

    prompt: str
    sample: int = 0


class AnswerClient(ChatClient[Question]):
    """Asks a served policy for an answer: the prompt is the user's only message."""

    owner: ClassVar[str] = "served policy"
    kept: ClassVar[str] = "answers"

    def __init__(self, endpoint: AnswerEndpoint, accepted: bool = False) -> None:
        super().__init__(endpoint, accepted)
        self.endpoint = endpoint

    def _body(self, call: Question, nonce: str) -> dict[str, Any]:
        """The request without the parameters that are left out."""
        sampling = self.endpoint.sampling()
        sampling["seed"] += call.sample
        sampling[self.length_parameter] = sampling.pop("max_tokens")
        return {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": call.prompt}],
            **{name: value for name, value in sampling.items() if name not in self.left_out},
        }

    def _shown(self, call: Question) -> Sequence[str]:
        """The texts of a call, which some endpoints repeat in their errors."""
        return (call.prompt,)

    def _read(self, reply: Completion, call: Question, nonce: str, request: dict[str, Any]) -> Attempt:
        """The answer without thoughts, or why there is none.

        An answer that ended at the limit of tokens is kept, even if its thoughts took all of them: a policy of the
        sweep answers nothing then too.
        """
        text = without_thoughts(reply.content).strip()
        if reply.broken_off and not reply.refusal:
            return Attempt("unavailable", f"the reply broke off: finish_reason {reply.finish}")
        if reply.refusal:
            problem = f"the endpoint refused to answer: {reply.refusal}"
        elif text or reply.cut:
            problem = ""
        else:
            problem = "the reply is empty" + (": all of it was thoughts" if reply.thoughts or reply.content else "")
        return Attempt(
            outcome="unavailable" if problem else "answer",
            raw=self.redacted(problem or text),
            final=bool(problem),
            refused=bool(problem),
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            model=self.redacted(reply.model) if reply.model else None,
            fingerprint=self.redacted(reply.fingerprint) if reply.fingerprint else None,
            cut=reply.cut,
        )


def answers(
    questions: Sequence[Question], policy: ServedPolicy, generation: Generation, *, ledger: Path, run: str, writer: str
) -> tuple[list[Reply], CallStats, AnswerEndpoint]:
    """Get an answer to every question, from the ledger or from the endpoint.

    Args:
        questions: The questions, no two of them equal.
        policy: The served policy.
        generation: How policies answer; engine and batch size are the server's own affair.
        ledger: Folder of all ledgers, meters and slots of a store.
        run: Id of the sweep run; the limits of calls count over a run, all criteria together.
        writer: Name of this writer's file in the ledger: the step's id.

    Returns:
        The replies in the order of the questions, facts about the calls, and the settings that were requested. A reply
        with another outcome than `answer` is none: the endpoint `refused` this very call, or gave none in any attempt.

    Raises:
        StepError: the endpoint refuses the key, the model or a setting; or the key's environment variable is not set.
        BudgetExceeded: a limit of the run is reached, or the account's quota is used up. As with the other, calls in
            flight were completed and their answers stored.
    """
    calls = policy.calls
    endpoint = AnswerEndpoint(
        **connection_fields(policy),
        max_tokens=generation.max_new_tokens,
        temperature=generation.temperature,
        top_p=generation.top_p,
        seed=generation.seed,
    )
    identity = endpoint.identity()
    keys = {hashlib.sha256(canonical([identity, q.prompt, q.sample]).encode()).hexdigest(): q for q in questions}
    budget = ledger / "runs" / run / content_id("answers", endpoint.address)
    meter = Meter(budget, calls.max_calls, calls.max_spend, endpoint.prices, ("calls for answers", "answers"))
    book = Ledger(ledger / content_id("answers", identity), f"{writer}-{run[:8]}-{os.getpid()}")
    slots = ledger / "runs" / run / content_id("endpoint", endpoint.address)
    replies, _, stats = replies_to(
        keys, endpoint, lambda accepted: AnswerClient(endpoint, accepted), book, meter, slots
    )
    sizes = {key: text_size(question.prompt) for key, question in keys.items() if replies[key].outcome == ANSWER}
    refuse_cut_prompts(sizes, replies, book)
    return [replies[key] for key in keys], stats, endpoint
