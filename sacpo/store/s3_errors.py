"""Errors of requests to a bucket: which of them may pass, and what a user can do about them.

They come from s3fs (which translates botocore's errors), from aiohttp below it, and from pyarrow.
"""

from __future__ import annotations

import re

_RETRIED_STATUS = (408, 409, 429)  # timeout, conflict with a concurrent conditional write, too many requests
_RETRIED_CODES = ("BadDigest", "IncompleteBody", "RequestTimeout", "Throttling")  # S3 answers 400 for errors in transit


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    import aiohttp
    from botocore.exceptions import ClientError, HTTPClientError
    from botocore.exceptions import ConnectionError as BotoConnectionError

    if isinstance(error, PermissionError) or _pyarrow_code(error) in ("ACCESS_DENIED", "NO_SUCH_BUCKET"):
        return False
    # s3fs translates an error answer of the service to an OSError, with botocore's error as its cause.
    answer = error if isinstance(error, ClientError) else error.__cause__
    if isinstance(answer, ClientError):
        status = answer.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        code = answer.response.get("Error", {}).get("Code")
        return not 400 <= status < 500 or status in _RETRIED_STATUS or code in _RETRIED_CODES
    return isinstance(error, OSError | BotoConnectionError | HTTPClientError | aiohttp.ClientError | TimeoutError)


def _pyarrow_code(error: Exception) -> str | None:
    """The AWS error code in an error of pyarrow; None for other errors.

    pyarrow raises a plain OSError without an errno for every AWS error, so the code can only be read from its text:
    "When ...: AWS Error ACCESS_DENIED during PutObject operation: ...".
    """
    match = re.search(r"AWS Error ([A-Z_]+) during", str(error)) if type(error) is OSError else None
    return match[1] if match else None


def reason_and_way_out(error: Exception) -> str:
    """The error's text, and the user's next step."""
    from botocore.exceptions import CredentialRetrievalError, NoCredentialsError, PartialCredentialsError

    reason = str(error).strip() or type(error).__name__
    credential_errors = (PermissionError, NoCredentialsError, PartialCredentialsError, CredentialRetrievalError)
    if isinstance(error, credential_errors) or _pyarrow_code(error) == "ACCESS_DENIED":
        return f"{reason}; give keys that may read and write there (AWS_ACCESS_KEY_ID and so on, or an instance role)"
    if not is_transient(error):
        return f"{reason}; check the bucket's name and the options of the URI"
    return f"{reason}; run the same command again when the service answers, and the sweep continues"
