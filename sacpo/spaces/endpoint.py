"""Settings of an OpenAI-compatible endpoint, which LLM judges and served policies share."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sacpo.spaces.base import Strict


class Calls(Strict):
    """Limits and prices of an endpoint. No setting here changes a reply, so none changes a step's id."""

    concurrency: int = Field(
        16, ge=1, description="calls in flight at the same time, over all steps of the sweep; default 16"
    )
    timeout: float = Field(60.0, gt=0, description="seconds that one HTTP attempt may take; default 60")
    attempts: int = Field(
        8, ge=1, description="HTTP attempts before a verdict counts as unavailable or unparsable; default 8"
    )
    max_calls: int | None = Field(
        None, ge=1, description="HTTP attempts that one run of the sweep may make; null means no limit"
    )
    max_spend: float | None = Field(
        None, gt=0, description="cost that one run may reach, in the currency of the prices; null means no limit"
    )
    price_prompt: float | None = Field(None, ge=0, description="price of one million prompt tokens; null means unknown")
    price_completion: float | None = Field(
        None, ge=0, description="price of one million completion tokens; null means unknown"
    )


class EndpointSettings(Strict):
    """A model behind an OpenAI-compatible endpoint."""

    not_hashed: ClassVar[frozenset[str]] = frozenset({"base_url", "api_key_env", "calls"})

    model: str = Field(min_length=1, description="name of the model at the endpoint")
    revision: str = Field(
        "",
        description="version of the weights, as you name it; verdicts and answers of another revision are not reused",
    )
    base_url: str | None = Field(
        None, description="URL of the endpoint, such as http://HOST/v1; null means OpenAI's own endpoint"
    )
    api_key_env: str | None = Field(
        "OPENAI_API_KEY",
        description="environment variable that holds the API key; null for an endpoint that needs none",
    )
    calls: Calls = Field(Calls(), description="limits and prices of the endpoint")
