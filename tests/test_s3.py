"""A store in a bucket: the cache, uploads in parts, races, silence of the service, and two machines."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sacpo.errors import StoreError
from sacpo.judges.ledger import Ledger
from sacpo.planning.judge_payloads import JudgePayload, LLMInstructions
from sacpo.results import Results, load
from sacpo.spaces.evaluation import LLMJudge
from sacpo.store import backends, local_cache
from sacpo.store.heartbeat import LEASE_S
from sacpo.store.step_store import Store
from tests.commands import FOUR_CPUS, arguments, run, write_space
from tests.jobs import empty_result, job, step
from tests.results_folders import copy_store
from tests.s3 import BUCKET, Service
from tests.spaces import ROOT, small

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(s3: Service) -> str:
    """URI of a new store."""
    return s3.uri(uuid.uuid4().hex)


def write(store: Store, name: str, size: int) -> str:
    """Complete a step with an output of `size` random bytes; the output's name."""
    target = step(name)
    claim = store.claim(target, "run")
    assert claim is not None
    (claim.folder / "weights").write_bytes(os.urandom(size))
    return claim.commit(empty_result(target.kind)).output


def test_an_output_is_fetched_once_and_a_damaged_copy_is_fetched_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(bucket)
    write(store, "a", 1000)
    assert store.cache is not None
    fetched: list[str] = []
    real = backends.BucketBackend.download
    monkeypatch.setattr(
        backends.BucketBackend, "download", lambda self, key, path: (fetched.append(key), real(self, key, path))[1]
    )
    path = store.verified_output_dir("a") / "weights"
    assert not fetched, "this machine wrote it"
    content = path.read_bytes()
    path.write_bytes(content[:500])
    assert (Store(bucket).verified_output_dir("a") / "weights").read_bytes() == content
    assert len(fetched) == 1
    store.verified_output_dir("a")
    assert len(fetched) == 1
    assert store.record("a") is not None


def test_large_files_go_in_parts_and_come_back_whole(bucket: str) -> None:
    store = Store(bucket)
    output = write(store, "a", 150 * 2**20)  # sent in parts of 8 MiB
    before = (store.verified_output_dir("a") / "weights").read_bytes()
    assert store.cache is not None
    store.cache.drop(f"steps/a/{output}")
    assert (store.verified_output_dir("a") / "weights").read_bytes() == before


def test_the_cache_keeps_the_outputs_that_were_used_last_within_its_bound(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACPO_CACHE_GB", "0.0025")
    store = Store(bucket)
    write(store, "a", 10**6)
    write(store, "b", 10**6)
    write(store, "c", 10**6)
    assert store.cache is not None
    folders = {name: store.cache.root / "steps" / name / "output-0001" for name in "abcd"}
    assert all(folders[name].is_dir() for name in "abc"), "all were in use a moment ago"
    monkeypatch.setattr(local_cache, "_IN_USE_S", 0.0)
    store.verified_output_dir("a")
    write(store, "d", 10**6)
    assert [name for name in "abcd" if folders[name].is_dir()] == ["a", "d"]
    assert (store.verified_output_dir("b") / "weights").stat().st_size == 10**6
    monkeypatch.setenv("SACPO_CACHE_GB", "much")
    with pytest.raises(StoreError, match="SACPO_CACHE_GB: 'much'"):
        write(store, "e", 1)


def test_a_request_waits_while_the_service_is_silent(s3: Service, bucket: str) -> None:
    store = Store(bucket)
    write(store, "a", 10)
    s3.pause()
    timer = threading.Timer(2.0, s3.resume)
    timer.start()
    try:
        started = time.monotonic()
        assert store.record("a") is not None
        assert time.monotonic() - started > 1.5
    finally:
        timer.join()


def _race(bucket: str, names: list[str], started: object) -> int:
    files = Store(bucket).files
    started.wait()  # type: ignore[attr-defined]
    return sum(files.create(name, str(os.getpid()).encode()) for name in names)


def test_of_many_processes_that_create_a_key_exactly_one_succeeds(bucket: str) -> None:
    names = [f"contested/{i}" for i in range(20)]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, spawn.Pool(4) as pool:
        started = manager.Event()
        futures = [pool.apply_async(_race, (bucket, names, started)) for _ in range(4)]
        started.set()
        assert sum(future.get(120) for future in futures) == len(names)


def test_a_bucket_that_cannot_be_used_is_refused_with_the_way_out(s3: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="no bucket is named"):
        Store("s3://")
    with pytest.raises(StoreError, match="unknown option endpoint; write s3://BUCKET"):
        Store(f"s3://{BUCKET}/x?endpoint={s3.endpoint}")
    with pytest.raises(StoreError, match="there is no bucket elsewhere; create it first"):
        backends.check_writable(Store(f"s3://elsewhere/x?endpoint_override={s3.endpoint}").files)
    with pytest.raises(StoreError, match=r"cannot be reached: .*127\.0\.0\.1:9"):
        backends.check_writable(Store(f"s3://{BUCKET}/x?endpoint_override=http://127.0.0.1:9").files)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(Path("/nowhere")))
    with pytest.raises(StoreError, match="give credentials that may read, write, list and delete there"):
        backends.check_writable(Store(s3.uri("y")).files)
    Store(s3.uri("z"))


def test_verdicts_of_one_machine_are_known_on_another(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"outcome": "tie"}
    inputs = LLMInstructions(rubric="", prompt_version=1)
    payload = JudgePayload(criterion="helpfulness", judge=LLMJudge(kind="llm", model="m"), inputs=inputs)
    for machine, known in (("one", None), ("two", row)):
        monkeypatch.setenv("SACPO_CACHE", str(tmp_path / machine))
        store = Store(bucket)
        judge = replace(job(tmp_path / "job", "judge", payload), folder=store.step_dir("step-0") / "output-0001",
                        logs=store.log_dir("step-0") / "0001", run=machine, store=store)  # fmt: skip
        with judge.staged_inputs():
            book = Ledger(store.ledger / "book", f"step-0-{machine}")
            assert book.get("key") == known
            book.add("key", row)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_machines_share_a_bucket_and_train_everything_once(
    s3: Service, small_results: Path, tmp_path: Path
) -> None:
    """Two drivers, each with a cache of its own; their tables equal those of a sweep on a path.

    The SFT policy, its evaluation and all data are in the bucket already. Meanwhile the service is silent for longer
    than the lease of a claim.
    """
    space = write_space(small(resources__workers=2, resources__checkpoint_steps=3), tmp_path)
    missing = copy_store(small_results, tmp_path / "store", without=".*dpo:helpfulness@2.*")
    s3.upload(tmp_path / "store", "shared")
    store, before = s3.uri("shared"), {key for key in s3.keys("shared/") if key.endswith("record.json")}
    drivers = []
    for name in ("one", "two"):
        environment = os.environ | FOUR_CPUS | {"SACPO_CACHE": str(tmp_path / f"cache-{name}")}
        command = arguments(space, s3.uri(f"results/{name}"), "--store", store)
        drivers.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True))
    while not any(key.endswith("record.json") and key not in before for key in s3.keys("shared/")):
        time.sleep(1)
        assert all(driver.poll() is None for driver in drivers)
    s3.pause()
    time.sleep(LEASE_S + 5)
    s3.resume()
    outputs = [driver.communicate(timeout=900)[0] for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], "\n".join(outputs)
    sweeps = [load(s3.uri(f"results/{name}")) for name in ("one", "two")]
    steps_run = [sweep.sweep.counts.steps_run for sweep in sweeps]
    assert sum(steps_run) == len(missing)
    assert min(steps_run) > 0, "both machines worked"
    assert (sweeps[0].steps["attempts"] == 1).all()
    for sweep in sweeps:
        pd.testing.assert_frame_equal(_numbers(sweep), _numbers(load(small_results)))
    keys = s3.keys("shared/")
    assert not [key for key in keys if "/checkpoints/" in key and key[-1] != "/"], "checkpoints are removed"
    assert len([key for key in keys if key.endswith("record.json")]) == len(sweeps[0].steps)
    assert [key for key in keys if key.endswith("worker-1.log")], "the workers' logs are in the store"
    status = run("sacpo.sweep", "--status", s3.uri("results/one"))
    assert status.stdout.count("done") == 2, status.stdout
    s3.client.delete_object(Bucket=BUCKET, Key="results/one/report.html")
    assert run("sacpo.report", s3.uri("results/one")).returncode == 0
    assert "results/one/report.html" in s3.keys("results/one/")


def _numbers(results: Results) -> pd.DataFrame:
    columns = ["trial_id", "label", "status", "helpfulness", "harmlessness", "expected_reward", "kl_to_sft", "on_front"]
    return results.trials[columns]
