"""Errors of a bucket, made by s3fs, botocore, aiohttp and pyarrow: which are repeated, and for how long."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import aiohttp
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from s3fs.errors import translate_boto_error

from sacpo.errors import StoreError
from sacpo.store import backends
from sacpo.store.backends import S3Backend
from sacpo.store.s3_errors import is_transient, reason_and_way_out


def answer(code: str, status: int) -> Exception:
    """The error that s3fs raises for an error answer of the service."""
    response = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = translate_boto_error(ClientError(response, "PutObject"))
    assert isinstance(error, OSError)
    return error


def arrow(code: str) -> OSError:
    """The error that pyarrow raises for an AWS error: without an errno."""
    return OSError(f"When uploading object with key 'a' in bucket 'b': AWS Error {code} during PutObject operation: m")


@pytest.mark.parametrize(
    "error",
    [
        answer("SlowDown", 503),
        answer("InternalError", 500),
        answer("ConditionalRequestConflict", 409),
        answer("RequestTimeout", 400),
        answer("TooManyRequests", 429),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
        ReadTimeoutError(endpoint_url="http://127.0.0.1:9"),
        aiohttp.ServerDisconnectedError(),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        TimeoutError(),
        arrow("NETWORK_CONNECTION"),
        arrow("SLOW_DOWN"),
    ],
    ids=repr,
)
def test_an_error_that_may_pass_is_transient(error: Exception) -> None:
    assert is_transient(error)
    assert "run the same command again" in reason_and_way_out(error)


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (answer("AccessDenied", 403), "give keys"),
        (answer("SignatureDoesNotMatch", 403), "give keys"),
        (arrow("ACCESS_DENIED"), "give keys"),
        (NoCredentialsError(), "give keys"),
        (arrow("NO_SUCH_BUCKET"), "check the bucket's name"),
        (answer("InvalidBucketName", 400), "check the bucket's name"),
        (ValueError("Invalid endpoint: x"), "check the bucket's name"),
    ],
    ids=repr,
)
def test_an_error_that_stays_is_not_repeated(error: Exception, way_out: str) -> None:
    assert not is_transient(error)
    assert way_out in reason_and_way_out(error)


class Service:
    """Stands for s3fs: raises `errors` one after the other, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def cat_file(self, path: str, **_: object) -> bytes:
        """Content of a file."""
        if self.errors:
            raise self.errors.pop(0)
        return path.encode()


def backend(service: Service, has_answered: bool) -> S3Backend:
    files = S3Backend("s3://bucket/prefix", has_answered)
    files.__dict__["_s3fs"] = service
    return files


def test_a_request_is_repeated_for_the_patience_of_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda pause: (pauses.append(pause), clock.__setitem__(0, clock[0] + pause)))
    assert backend(Service(*[answer("SlowDown", 503)] * 5), True).read("key") == b"bucket/prefix/key"
    assert pauses == [0.5, 1.0, 2.0, 4.0, 5.0]
    monkeypatch.setattr(backends, "PATIENCE_S", 60.0)
    monkeypatch.setattr(backends, "FIRST_CONTACT_PATIENCE_S", 3.0)
    for has_answered, patience in ((True, 60.0), (False, 3.0)):
        clock[0] = 0.0
        with pytest.raises(StoreError, match=r"s3://bucket/prefix cannot be reached: .*SlowDown; run the same command"):
            backend(Service(*[answer("SlowDown", 503)] * 50), has_answered).read("key")
        assert patience < clock[0] <= patience + 5.0
    clock[0], pauses[:] = 0.0, []
    with pytest.raises(StoreError, match="give keys"):
        backend(Service(answer("AccessDenied", 403)), True).read("key")
    assert not pauses


def test_a_missing_object_counts_as_an_answer(tmp_path: Path) -> None:
    files = backend(Service(answer("NoSuchKey", 404)), False)
    assert files.read("key") is None
    assert files.__reduce__()[1] == ("s3://bucket/prefix", True)
