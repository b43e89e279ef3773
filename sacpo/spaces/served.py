"""Policies that a server elsewhere answers for: the models of a space's `served`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from sacpo.spaces.base import Strict
from sacpo.spaces.evaluation import Calls


class ServedPolicy(Strict):
    """A policy behind an OpenAI-compatible endpoint, which answers the evaluation's prompts."""

    not_hashed: ClassVar[frozenset[str]] = frozenset({"base_url", "api_key_env", "calls"})

    model: str = Field(min_length=1, description="name of the model at the endpoint")
    revision: str = Field(
        "", description="version of the weights, as you name it; answers of another revision are not reused"
    )
    base_url: str | None = Field(
        None, description="URL of the endpoint, such as http://HOST/v1; null means OpenAI's own endpoint"
    )
    api_key_env: str | None = Field(
        "OPENAI_API_KEY",
        description="environment variable that holds the API key; null for an endpoint that needs none",
    )
    calls: Calls = Field(Calls(), description="limits and prices of the endpoint")
