"""The payload of a policy that is served elsewhere, and which steps call an endpoint."""

from __future__ import annotations

from sacpo.planning.judge_payloads import JudgePayload
from sacpo.planning.payloads import Payload
from sacpo.spaces.endpoint import EndpointSettings
from sacpo.spaces.evaluation import Generation
from sacpo.spaces.served import ServedPolicy


class ServedPayload(Payload):
    """`served`: answers of a policy that is served elsewhere to one criterion's prompts.

    Attributes:
        generation: How it answers; engine and batch size are at their defaults, since the server has its own.
        prompts: Id of the prompts.
    """

    policy: ServedPolicy
    generation: Generation
    prompts: str

    @property
    def prompt_set(self) -> str | None:
        """Id of the prompts that the step needs."""
        return self.prompts


def endpoint_of(payload: Payload) -> EndpointSettings | None:
    """The settings of the endpoint that a step calls; None for a step that calls none."""
    if isinstance(payload, ServedPayload):
        return payload.policy
    if isinstance(payload, JudgePayload) and isinstance(payload.judge, EndpointSettings):
        return payload.judge
    return None
