"""A bucket behind a proxy that drops requests and loses answers, and with credentials that lack a right or expire."""

from __future__ import annotations

import os
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sacpo.errors import StoreError
from sacpo.results import load
from sacpo.store import bucket_backend, bucket_services, heartbeat
from sacpo.store.backends import BucketBackend, check_writable
from tests.commands import sweep_here, write_space
from tests.faulty_proxy import Fault, Proxy, Refuse, Rule, faulty_proxy
from tests.s3 import BUCKET, Service
from tests.spaces import small

pytestmark = pytest.mark.slow
MIB = 2**20


@pytest.fixture
def proxy(s3: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy in front of the service. Patience is short."""
    monkeypatch.setattr(bucket_services, "FIRST_CONTACT_PATIENCE_S", 1.0)
    monkeypatch.setattr(bucket_backend, "PATIENCE_S", 1.0)
    monkeypatch.setattr(bucket_backend, "_PAUSE_S", 0.01)
    with faulty_proxy(s3.port) as proxy:
        yield proxy


@pytest.fixture
def files(proxy: Proxy) -> BucketBackend:
    return BucketBackend(f"s3://{BUCKET}/{uuid.uuid4().hex}?endpoint_override={proxy.endpoint}")


def fails(fault: Fault, times: int, of: Callable[[str, str], bool]) -> Rule:
    """A rule by which the first requests that `of` accepts have a fault."""
    counted: list[str] = []

    def rule(method: str, path: str) -> Fault | None:
        if len(counted) < times and of(method, path):
            counted.append(path)
            return fault
        return None

    return rule


def ends_upload(method: str, path: str) -> bool:
    return method == "POST" and "uploadId=" in path


def test_a_creation_whose_answer_was_lost_is_recognised(files: BucketBackend, proxy: Proxy) -> None:
    proxy.rule = fails("lose", 1, lambda method, _: method == "PUT")
    assert files.create("key", b"ours")
    assert [request.partition(" ")[0] for request in proxy.requests] == ["PUT", "PUT", "GET"]
    proxy.rule = fails(Refuse(409, "ConditionalRequestConflict"), 2, lambda method, _: method == "PUT")
    assert not files.create("key", b"theirs")
    assert files.read("key") == b"ours"
    proxy.rule = fails(Refuse(409, "ConditionalRequestConflict"), 2, lambda method, _: method == "PUT")
    assert files.create("other", b"ours"), "the other conditional write failed"


def test_of_simultaneous_creations_with_lost_answers_exactly_one_succeeds(files: BucketBackend, proxy: Proxy) -> None:
    start = threading.Barrier(16)

    def create(number: int) -> bool:
        start.wait()
        return files.create("contested", f"{number}".encode())

    proxy.rule = fails("lose", 8, lambda method, _: method == "PUT")
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(create, range(16)))
    assert sum(created) == 1
    assert files.read("contested") == f"{created.index(True)}".encode()


@pytest.mark.parametrize("fault", ["drop", "lose", Refuse(500, "InternalError")], ids=str)
def test_an_upload_that_stops_half_way_leaves_what_was_there(
    files: BucketBackend, proxy: Proxy, tmp_path: Path, fault: Fault
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(20 * MIB))
    files.write("weights", b"before")
    proxy.rule = fails(fault, 10**6, lambda _, path: "partNumber=3" in path)
    with pytest.raises(StoreError, match="run the same command again"):
        files.upload(path, "weights")
    proxy.rule = lambda *_: None
    assert files.read("weights") == b"before"
    files.upload(path, "weights")
    assert files.read("weights") == path.read_bytes()


@pytest.mark.parametrize("fault", ["lose", Refuse(404, "NoSuchUpload")], ids=str)
def test_an_upload_whose_last_answer_was_lost_is_complete(
    files: BucketBackend, proxy: Proxy, tmp_path: Path, fault: Fault
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(20 * MIB))
    proxy.rule = fails(fault, 1, ends_upload)
    files.upload(path, "weights")
    assert files.read("weights") == path.read_bytes()


def test_a_download_that_breaks_off_is_resumed(files: BucketBackend, proxy: Proxy, tmp_path: Path) -> None:
    content = os.urandom(20 * MIB)
    files.write("weights", content)
    proxy.rule = fails("half", 2, lambda method, _: method == "GET")
    assert files.download("weights", tmp_path / "weights")
    assert (tmp_path / "weights").read_bytes() == content
    full_disk = tmp_path / f".again.{os.getpid()}"  # the name of the temporary file
    full_disk.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        files.download("weights", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("lacking", "problem"),
    [
        (lambda method, path: method == "PUT", "written"),
        (lambda method, path: "list-type=2" in path, "listed"),
        (lambda method, path: method == "GET" and "list-type" not in path, "read"),
        (lambda method, path: method == "DELETE" or path.endswith("?delete"), "deleted from"),
    ],
    ids=["write", "list", "read", "delete"],
)
def test_a_role_that_lacks_a_right_is_refused_before_a_sweep_starts(
    files: BucketBackend, proxy: Proxy, lacking: Callable[[str, str], bool], problem: str
) -> None:
    proxy.rule = fails(Refuse(403, "AccessDenied"), 10**6, lacking)
    with pytest.raises(
        StoreError, match=f"cannot be {problem} with these credentials: .*AccessDenied.*give credentials"
    ):
        check_writable(files)


def test_a_profile_gives_the_credentials_in_every_process(
    s3: Service, files: BucketBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        "[lab]\naws_access_key_id = labkey\naws_secret_access_key = secret\naws_session_token = token\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    bucket_services._boto3_credentials.cache_clear()
    try:
        check_writable(files)
        credentials = bucket_services.aws_credentials()
        assert (credentials["access_key_id"], credentials["token"]) == ("labkey", "token")
        filesystem = pickle.loads(pickle.dumps(files.filesystem()))
        with filesystem.open_output_stream(files.path("folder/by-ray")) as stream:
            stream.write(b"content")
        assert pickle.loads(pickle.dumps(files)).read("folder/by-ray") == b"content"
        assert filesystem.get_file_info(files.path("folder")).type.name == "Directory"
        filesystem.delete_dir(files.path("folder"))
        assert files.files_below("folder") == {}
    finally:
        bucket_services._boto3_credentials.cache_clear()


def test_when_credentials_expire_in_the_middle_of_a_sweep_nothing_is_lost(
    files: BucketBackend, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "LEASE_S", 0.1)  # the second command runs in the same process, which still lives
    space = write_space(small(merges=[]), tmp_path)
    records: list[str] = []

    def expire(method: str, path: str) -> Fault | None:
        if len(records) == 3:
            return Refuse(400, "ExpiredToken")
        if method == "PUT" and path.endswith("/record.json"):
            records.append(path)
        return None

    proxy.rule = expire
    ended = sweep_here(space, tmp_path / "results", "--store", files.uri)
    assert ended.returncode != 0
    assert "ExpiredToken" in ended.stdout + ended.stderr
    assert "renew the credentials" in " ".join((ended.stdout + ended.stderr).split())
    proxy.rule = lambda *_: None
    continued = sweep_here(space, tmp_path / "results", "--store", files.uri)
    assert continued.returncode == 0, continued.stdout + continued.stderr
    steps = load(tmp_path / "results").steps
    assert f"{len(steps) - 3} steps run, 3 done before, 0 failed" in continued.stdout
