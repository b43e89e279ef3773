"""The API key of an endpoint, from an environment variable."""

from __future__ import annotations

import os

from sacpo.errors import StepError


def key_source(variable: str | None) -> str:
    """Where the key comes from, for messages."""
    return f"key from {variable}" if variable else "sent without a key"


def secret_from(variable: str | None) -> str | None:
    """The key from the environment variable; None without a variable.

    Raises:
        StepError: the variable is not set, or its value cannot be a key.
    """
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise StepError(
            f"the endpoint needs its key in the environment variable {variable}, which is not set where the step runs: "
            "set it before you start the sweep, or set api_key_env: null if the endpoint needs no key"
        )
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise StepError(
            f"the environment variable {variable} holds characters that no key has: only printable ASCII characters "
            "other than spaces are allowed; check how the key was copied"
        )
    return secret
