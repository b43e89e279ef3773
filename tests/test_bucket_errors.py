"""Errors of a bucket, as obstore raises them for a service's answers: which are repeated, and what the user reads."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sacpo.errors import StoreError
from sacpo.store import bucket_backend, bucket_services
from sacpo.store.bucket_backend import BucketBackend
from tests.faulty_proxy import Fault, Proxy, Refuse, faulty_proxy
from tests.s3 import KEYS


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A service; obstore itself repeats no request, so that each test sees who repeats what."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket_services, "FIRST_CONTACT_PATIENCE_S", 0.0)
    monkeypatch.setattr(bucket_backend, "_PAUSE_S", 0.01)
    with faulty_proxy() as proxy:
        yield proxy


def backend(proxy: Proxy, has_answered: bool = True) -> BucketBackend:
    return BucketBackend(f"s3://bucket/prefix?endpoint_override={proxy.endpoint}", has_answered)


def failing(proxy: Proxy, fault: Fault, times: int) -> None:
    """Fail the next requests, then answer that there is no such object."""
    count = len(proxy.requests)
    proxy.rule = lambda *_: fault if len(proxy.requests) <= count + times else Refuse(404, "NoSuchKey")


@pytest.mark.parametrize(
    "fault",
    [
        Refuse(503, "SlowDown"),
        Refuse(500, "InternalError"),
        Refuse(409, "ConditionalRequestConflict"),
        Refuse(400, "RequestTimeout"),
        Refuse(429, "TooManyRequests"),
        "drop",
    ],
    ids=repr,
)
def test_an_error_that_may_pass_is_repeated_within_the_patience(
    proxy: Proxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = backend(proxy)
    failing(proxy, fault, times=3)
    assert files.read("key") is None
    assert len(proxy.requests) == 4
    failing(proxy, fault, times=1000)
    monkeypatch.setattr(bucket_backend, "PATIENCE_S", 0.05)
    for request in (lambda: files.read("key"), lambda: files.list_names("folder"), lambda: files.write("key", b"")):
        with pytest.raises(StoreError, match=r"s3://bucket/prefix.* cannot be reached: .*run the same command again"):
            request()


@pytest.mark.parametrize(
    ("fault", "reason", "way_out"),
    [
        (Refuse(403, "AccessDenied"), r"AccessDenied \(The message\.\)", "give credentials that may read, write, list"),
        (Refuse(401, "Unauthenticated"), "Unauthenticated", r"give credentials .*AWS_PROFILE, or an instance role"),
        (Refuse(403, "SignatureDoesNotMatch"), "SignatureDoesNotMatch", "give credentials"),
        (Refuse(400, "ExpiredToken"), "ExpiredToken", "renew the credentials .*finished steps are kept"),
        (Refuse(400, "InvalidBucketName"), "InvalidBucketName", "check the bucket's name and the options"),
        (Refuse(301, "PermanentRedirect"), "incorrectly configured region", "check the bucket's region or name"),
    ],
    ids=lambda value: value.code if isinstance(value, Refuse) else "",
)
def test_an_error_that_stays_is_not_repeated(proxy: Proxy, fault: Fault, reason: str, way_out: str) -> None:
    files = backend(proxy)
    failing(proxy, fault, times=1000)
    uses = {
        "read": lambda: files.read("key"),
        "listed": lambda: files.list_names("folder"),
        "written": lambda: files.create("key", b""),
    }
    for use, request in uses.items():
        with pytest.raises(StoreError, match=f"s3://bucket/prefix.*{reason}.*{way_out}") as raised:
            request()
        text = str(raised.value)
        assert "Debug" not in text
        assert "<" not in text
        assert (f"cannot be {use} with these credentials" in text) == ("give credentials" in way_out)
    assert len(proxy.requests) == len(uses)


def test_a_bucket_that_has_never_answered_is_not_waited_for(proxy: Proxy) -> None:
    proxy.rule = lambda *_: "drop"
    with pytest.raises(StoreError, match="cannot be reached"):
        backend(proxy, has_answered=False).read("key")
    assert len(proxy.requests) == 1


def test_a_missing_object_counts_as_an_answer(proxy: Proxy) -> None:
    files = backend(proxy, has_answered=False)
    failing(proxy, "drop", times=0)
    assert files.read("key") is None
    assert files.__reduce__()[1] == (files.uri, True)


def test_obstore_itself_repeats_a_request_for_a_few_seconds(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_services, "FIRST_CONTACT_PATIENCE_S", 1.0)
    proxy.rule = lambda *_: "drop"
    started = time.monotonic()
    with pytest.raises(StoreError, match="cannot be reached"):
        backend(proxy, has_answered=False).read("key")
    assert 0.5 < time.monotonic() - started < 5.0
    assert len(proxy.requests) > 2


def test_an_error_does_not_quote_a_signature(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=2024-01-01&sp=rl&sig=secret&se=2026-01-01")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY", raising=False)
    proxy.rule = lambda *_: Refuse(403, "AuthorizationPermissionMismatch")
    files = BucketBackend(f"az://container/prefix?account=name&endpoint_override={proxy.endpoint}/name", True)
    with pytest.raises(StoreError, match=r"cannot be listed .*: 403 Forbidden: Authorization") as raised:
        files.list_names("folder")
    assert "secret" in proxy.requests[0]
    assert "secret" not in str(raised.value)
