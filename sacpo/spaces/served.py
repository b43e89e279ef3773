"""Policies that a server elsewhere answers for: the models of a space's `served`."""

from __future__ import annotations

from sacpo.spaces.endpoint import EndpointSettings


class ServedPolicy(EndpointSettings):
    """A policy behind an OpenAI-compatible endpoint, which answers the evaluation's prompts."""
