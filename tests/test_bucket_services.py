"""The store's guarantees in buckets of three services, and what a user reads whose bucket cannot be used."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sacpo.cluster.checkpoints import LATEST
from sacpo.errors import StoreError
from sacpo.hashing import digest
from sacpo.results import load
from sacpo.store import bucket_services
from sacpo.store.backends import Backend, BucketBackend, check_writable, open_backend
from sacpo.store.folder_transfer import upload_folder
from sacpo.store.step_store import Store
from tests.buckets import azure_container, azurite, google_bucket
from tests.commands import arguments, sweep_here, write_space
from tests.jobs import empty_result, step
from tests.results_folders import copy_store
from tests.s3 import BUCKET, Service
from tests.spaces import ROOT, small

SERVICES = ["s3", "gs", "az"]
_PREFIX = "odd 'name of a~%b #é"


@pytest.fixture(scope="module")
def buckets(s3: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """URIs by service, with `PREFIX` in place of a prefix."""
    with contextlib.ExitStack() as stack:
        setenv = stack.enter_context(pytest.MonkeyPatch.context()).setenv
        folder = tmp_path_factory.mktemp("buckets")
        uris = {"s3": s3.uri("PREFIX"), "gs": stack.enter_context(google_bucket(s3, folder, setenv))}
        if (command := azurite()) is not None:
            uris["az"] = stack.enter_context(azure_container(command, folder, setenv))
        yield uris


@pytest.fixture
def bucket(request: pytest.FixtureRequest, buckets: dict[str, str]) -> str:
    """URI of a new prefix in the bucket of the service that is the parameter."""
    if request.param not in buckets:
        pytest.skip("Azurite is not installed (npm install azurite)")
    return buckets[request.param].replace("PREFIX", f"{uuid.uuid4().hex}/{_PREFIX}")


@pytest.mark.parametrize("bucket", SERVICES, indirect=True)
def test_a_bucket_has_the_operations_of_a_folder(bucket: str, tmp_path: Path) -> None:
    files = open_backend(bucket, "--store")
    assert isinstance(files, BucketBackend)
    check_writable(files)
    files.write("steps/a~%b #é.json", b"one")
    files.write("steps/b/record.json", b"two")
    files.write("steps/bb", b"three")
    assert files.list_names("steps") == ["a~%b #é.json", "b", "bb"]
    assert files.list_names("nothing") == []
    assert {key: file.size for key, file in files.files_below("steps/b").items()} == {"steps/b/record.json": 3}
    assert files.read("steps/a~%b #é.json") == b"one"
    assert files.read("nothing") is None
    assert files.digest("steps/bb") == digest(b"three")
    assert files.digest("nothing") is None
    age = files.age("steps/bb")
    assert age is not None
    assert -60 < age < 60
    assert files.age("nothing") is None
    assert files.move("steps/bb", "steps/moved")
    assert not files.move("steps/bb", "steps/moved")
    for key in ("steps/b", "steps/moved", "nothing"):
        files.remove(key)
    assert list(files.files_below()) == ["steps/a~%b #é.json"]
    (tmp_path / "weights").write_bytes(os.urandom(20 * 2**20))
    files.upload(tmp_path / "weights", "weights")
    assert files.download("weights", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "weights").read_bytes()
    assert not files.download("nothing", tmp_path / "again")


@pytest.mark.parametrize("bucket", SERVICES, indirect=True)
def test_of_simultaneous_creations_exactly_one_succeeds(bucket: str) -> None:
    files, start = open_backend(bucket, "--store"), threading.Barrier(16)

    def create(number: int) -> bool:
        start.wait()
        return files.create("contested", f"{number}".encode())

    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(create, range(16)))
    assert sum(created) == 1
    assert files.read("contested") == f"{created.index(True)}".encode()


@pytest.mark.parametrize("bucket", SERVICES, indirect=True)
def test_two_processes_may_remove_a_folder_at_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = open_backend(bucket, "--store")
    for name in "abc":
        files.write(f"folder/{name}", b"")
    below: Callable[[Backend, str], dict[str, object]] = BucketBackend.files_below
    other = open_backend(bucket, "--store")

    def overtaken(self: BucketBackend, folder: str = "") -> dict[str, object]:
        """The list that this process gets, before another one removes a file of it."""
        listed = below(self, folder)
        monkeypatch.setattr(BucketBackend, "files_below", below)
        other.remove("folder/b")
        return listed

    monkeypatch.setattr(BucketBackend, "files_below", overtaken)
    files.remove("folder")
    assert files.files_below("folder") == {}


@pytest.mark.parametrize("bucket", SERVICES, indirect=True)
def test_a_step_is_claimed_once_and_its_output_comes_back_on_another_machine(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, target = Store(bucket), step("a")
    claim = store.claim(target, "run")
    assert claim is not None
    assert Store(bucket).claim(target, "other") is None
    (claim.folder / "weights").write_bytes(b"weights")
    claim.commit(empty_result(target.kind))
    assert store.location("steps/a").startswith(bucket.partition(":")[0] + "://")
    monkeypatch.setenv("SACPO_CACHE", str(tmp_path))
    assert (Store(bucket).verified_output_dir("a") / "weights").read_bytes() == b"weights"


@pytest.mark.parametrize("bucket", SERVICES, indirect=True)
def test_pyarrow_writes_folders_there(bucket: str) -> None:
    files = open_backend(bucket, "--store")
    assert isinstance(files, BucketBackend)
    filesystem = files.filesystem()
    filesystem.create_dir(files.path("folder"))
    with filesystem.open_output_stream(files.path("folder/file")) as stream:
        stream.write(b"content")
    assert files.read("folder/file") == b"content"
    filesystem.delete_dir(files.path("folder"))
    assert files.files_below("folder") == {}


@pytest.mark.parametrize("bucket", ["az"], indirect=True)
def test_a_sweep_keeps_store_and_results_there(bucket: str, tmp_path: Path) -> None:
    results = open_backend(bucket, "--results").child_uri("results")
    answer = sweep_here(write_space(small(merges=[]), tmp_path), results)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "trials.parquet" in open_backend(results, "--results").list_names("")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bucket", ["gs" if azurite() is None else "az"], indirect=True)
def test_a_stage_on_ray_goes_on_from_its_checkpoint_there(bucket: str, small_results: Path, tmp_path: Path) -> None:
    """A sweep is stopped after the first checkpoint of two workers; the same command goes on from one.

    One service: the other tests show that all three have the operations that checkpoints need.
    """
    chains = [{"chain": "dpo:helpfulness", "beta": 2.0}]
    space = small(
        chains=chains, merges=[], training__dpo__epochs=6, resources__workers=2, resources__checkpoint_steps=4
    )
    copy_store(small_results, tmp_path / "store", without=".*dpo.*")
    files = open_backend(bucket, "--store")
    upload_folder(files, tmp_path / "store", "store")
    results = tmp_path / "results"
    command = arguments(write_space(space, tmp_path), results, "--store", files.child_uri("store"))
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as sweep:
        while not any(key.endswith(LATEST) for key in files.files_below("store/checkpoints")):
            assert sweep.poll() is None, sweep.communicate()[0]
            time.sleep(0.1)
        sweep.terminate()
        stopped = sweep.communicate()[0]
    assert sweep.returncode == 1, stopped
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    steps = load(results).steps
    (stage,) = steps[(steps["kind"] == "train") & steps["label"].str.contains("dpo")].itertuples()
    assert json.loads(stage.metrics)["resumed"]
    assert not [key for key in files.files_below("store/checkpoints") if not key.endswith("/")], "they are removed"


@pytest.mark.parametrize("bucket", SERVICES, indirect=True)
def test_a_bucket_that_does_not_exist_is_named(bucket: str) -> None:
    files = open_backend(bucket.replace(f"//{BUCKET}/", "//elsewhere/"), "--store")
    with pytest.raises(StoreError, match="there is no bucket elsewhere; create it first"):
        check_writable(files)
    with pytest.raises(StoreError, match="check the bucket's name"):
        files.list_names("steps")


def test_what_a_uri_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StoreError, match=r"no storage account is named; write az://CONTAINER/PREFIX\?account=NAME"):
        open_backend("az://container/x", "--store").read("key")
    with pytest.raises(StoreError, match=r"gs://b/x\?region=y: unknown option region; write gs://BUCKET/PREFIX"):
        open_backend("gs://b/x?region=y", "--store")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    with pytest.raises(
        StoreError, match=r"gs://b/x cannot be used: .*/nowhere.json.*; check .* the credentials \(GOOGLE_"
    ):
        open_backend("gs://b/x", "--store").read("key")
    with pytest.raises(StoreError, match=r"--store ftp://x: .*s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER"):
        open_backend("ftp://x", "--store")


@pytest.mark.parametrize(
    ("uri", "hint"),
    [("gs://b/x", "GOOGLE_APPLICATION_CREDENTIALS"), ("az://c/x?account=a", "AZURE_STORAGE_ACCOUNT_KEY")],
)
def test_missing_credentials_are_told_with_the_way_out(
    uri: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # without gcloud's login
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # no machine's identity service answers
    monkeypatch.setattr(bucket_services, "FIRST_CONTACT_PATIENCE_S", 0.2)
    with pytest.raises(StoreError, match=f"cannot be reached: .*give credentials that may read.*{hint}"):
        check_writable(open_backend(uri, "--store"))
