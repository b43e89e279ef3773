"""Each step is done once, however many processes ask for it; a partial output is never read."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sacpo.errors import StoreError
from sacpo.planning.payloads import SFTPayload
from sacpo.planning.plan import Step
from sacpo.planning.records import StepRecord
from sacpo.spaces.training import SFTTraining
from sacpo.store import claim as claims
from sacpo.store import heartbeat
from sacpo.store.step_store import CorruptOutput, Store
from tests.jobs import empty_result, step

SPAWN = multiprocessing.get_context("spawn")
STEP = step("generate-0")


def complete(store: Store, step: Step = STEP, content: str = "weights") -> StepRecord:
    """Claim the step, write one file and commit."""
    claim = store.claim(step, "run")
    assert claim is not None
    (claim.folder / "a.safetensors").write_text(content)
    return claim.commit(empty_result(step.kind))


def test_a_step_with_a_record_is_done_and_cannot_be_claimed(uri: str) -> None:
    store = Store(uri)
    assert store.record(STEP.id) is None
    record = complete(store)
    assert store.record(STEP.id) == record
    payload = json.loads(store.files.read(f"steps/{STEP.id}/payload.json") or b"")
    assert payload["payload"]["q"] == 0.5
    assert (payload["kind"], payload["recipe"], payload["parents"]) == (STEP.kind, STEP.recipe, STEP.parents)
    assert (store.verified_output_dir(STEP.id) / "a.safetensors").read_text() == "weights"
    assert store.claim(STEP, "other") is None


def test_a_live_claim_keeps_others_out_and_a_failed_one_does_not(uri: str) -> None:
    store = Store(uri)
    claim = store.claim(STEP, "first")
    assert claim is not None
    assert Store(uri).claim(STEP, "other") is None
    claim.fail("diverged", "some.log")
    failure = store.failure(STEP.id)
    assert failure is not None
    assert (failure.error, failure.run, failure.log) == ("diverged", "first", "some.log")
    assert store.claim(STEP, "first") is None  # not again in the same run
    assert complete(store).attempts == 2
    assert store.failure(STEP.id) is None


def _hold(root: str, claimed: Any) -> None:
    claim = Store(root).claim(STEP, "dead")
    assert claim is not None
    claim.store.files.write(f"steps/{STEP.id}/{claim.output}/a.safetensors", b"weig")
    claimed.set()
    signal.pause()  # the test kills this process


def test_the_claim_of_a_killed_process_is_taken_over_at_once_and_its_output_removed(uri: str) -> None:
    claimed = SPAWN.Event()
    holder = SPAWN.Process(target=_hold, args=(uri, claimed))
    holder.start()
    assert claimed.wait(30)
    assert Store(uri).claim(STEP, "run") is None
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    store = Store(uri)
    assert store.files.list_names(f"steps/{STEP.id}/output-0001")
    assert complete(store).attempts == 2
    assert not store.files.list_names(f"steps/{STEP.id}/output-0001")
    assert (store.verified_output_dir(STEP.id) / "a.safetensors").read_text() == "weights"


def test_a_silent_holder_on_another_host_loses_its_claim_after_the_lease(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(uri)
    claim = store.claim(STEP, "far")
    assert claim is not None
    monkeypatch.setattr(heartbeat, "_host", lambda: "another host")
    monkeypatch.setattr(heartbeat, "LEASE_S", 0.3)
    assert store.claim(STEP, "run") is None
    key = f"steps/{STEP.id}/attempts/0001.claim"
    for beat in range(5):  # a heartbeat that changes keeps the claim for any length of time
        time.sleep(0.15)
        holder = json.loads(store.files.read(key) or b"")
        store.files.write(key, json.dumps(holder | {"beat": beat + 100}).encode())
        assert store.claim(STEP, "run") is None
    time.sleep(0.4)
    assert store.claim(STEP, "run") is not None


def _race(root: str, targets: int, started: Any) -> list[str]:
    store, finished = Store(root), []
    started.wait()
    for i in range(targets):
        target = step(f"generate-{i}")
        while store.record(target.id) is None:
            claim = store.claim(target, "run")
            if claim is None:
                time.sleep(0.001)
                continue
            finished.append(target.id)
            (claim.folder / "out").write_text(str(os.getpid()))
            claim.commit(empty_result(target.kind))
    return finished


@pytest.mark.parametrize(("workers", "targets"), [(1, 5), (2, 5), (3, 3), (5, 20)])
def test_every_step_is_carried_out_exactly_once(uri: str, workers: int, targets: int) -> None:
    with SPAWN.Manager() as manager, SPAWN.Pool(workers) as pool:
        started = manager.Event()
        futures = [pool.apply_async(_race, (uri, targets, started)) for _ in range(workers)]
        started.set()
        carried_out = [step_id for future in futures for step_id in future.get(60)]
    assert sorted(carried_out) == sorted(f"generate-{i}" for i in range(targets))


def test_of_two_finishers_one_record_stands_and_its_output_is_whole(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(uri)
    slow = store.claim(STEP, "slow")
    assert slow is not None
    monkeypatch.setattr(claims, "is_stale", lambda *_: True)
    quick = store.claim(STEP, "quick")
    assert quick is not None
    for claim in (quick, slow):
        (claim.folder / "out").write_text(claim.run)
    assert quick.commit(empty_result(STEP.kind)).run == "quick"
    assert slow.commit(empty_result(STEP.kind)).run == "quick"
    assert (store.verified_output_dir(STEP.id) / "out").read_text() == "quick"


@pytest.mark.parametrize("damage", [b"weigh", b"weightz", None])
def test_a_damaged_output_is_noticed_retracted_and_can_be_computed_again(uri: str, damage: bytes | None) -> None:
    store = Store(uri)
    record = complete(store)
    key = f"steps/{STEP.id}/{record.output}/a.safetensors"
    store.files.remove(key) if damage is None else store.files.write(key, damage)
    if store.cache is not None:
        store.cache.drop(f"steps/{STEP.id}/{record.output}")  # as on a machine that did not write it
    with pytest.raises(CorruptOutput, match=r"a\.safetensors"):
        store.verified_output_dir(STEP.id)
    assert store.record(STEP.id) is None
    assert len(store.retractions(STEP.id)) == 1
    complete(store, content="again")
    assert (store.verified_output_dir(STEP.id) / "a.safetensors").read_text() == "again"


def test_records_and_claims_that_a_power_failure_left_empty_block_no_later_attempt(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(uri)
    complete(store)
    store.files.write(f"steps/{STEP.id}/record.json", b"")
    assert store.record(STEP.id) is None
    assert store.retractions(STEP.id) == ["its record is damaged"]
    claim = store.claim(STEP, "before")
    assert claim is not None
    store.files.write(f"steps/{STEP.id}/attempts/0002.claim", b"")
    monkeypatch.setattr(heartbeat, "LEASE_S", 0.1)
    assert store.claim(STEP, "after") is None
    time.sleep(0.2)
    assert complete(store).attempts == 3


def test_a_path_that_cannot_be_a_store_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="give a path, local or"):
        Store("ftp://host/store")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(file).claim(STEP, "run")


def test_checkpoints_are_removed_when_the_training_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    settings = SFTTraining(learning_rate=1e-3)
    payload = SFTPayload(method="sft", settings=settings, seed=0, dtype="float32", max_length=16)
    training = step("train-0", "train", payload)
    Path(store.checkpoint_uri(training.id)).mkdir(parents=True)
    complete(store, training)
    assert not Path(store.checkpoint_uri(training.id)).exists()


def test_files_of_an_output_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    store = Store(tmp_path)
    claim = store.claim(STEP, "run")
    assert claim is not None
    weights = claim.folder / "a.safetensors"
    weights.write_text("weights")
    weights.chmod(0o600)  # as the safetensors library creates its files
    before = os.umask(0o027)
    try:
        claim.commit(empty_result(STEP.kind))
    finally:
        os.umask(before)
    assert weights.stat().st_mode & 0o777 == 0o640
