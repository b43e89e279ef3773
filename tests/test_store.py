"""Each step is done once, whoever asks; nothing half done is ever read."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sacpo.errors import StoreError
from sacpo.planning.plan import Step
from sacpo.store.step_store import CorruptOutput, Store

SPAWN = multiprocessing.get_context("spawn")
STEP = Step("merge-0", "merge", "a step", {"q": 0.5}, {}, {})


def done(store: Store, step: Step = STEP, content: str = "weights") -> dict[str, Any]:
    claim = store.claim(step, "run")
    assert claim is not None
    (claim.folder / "a.safetensors").write_text(content)
    return claim.commit({"seconds": 1.0})


def test_a_step_is_done_when_its_record_is_there_and_then_claimed_no_more(uri: str) -> None:
    store = Store(uri)
    assert store.record(STEP.id) is None
    record = done(store)
    assert store.record(STEP.id) == record
    assert record["payload"] == STEP.payload
    assert (store.output(STEP.id) / "a.safetensors").read_text() == "weights"
    assert store.claim(STEP, "other") is None


def test_a_live_claim_keeps_others_out_and_a_failed_one_does_not(uri: str) -> None:
    store = Store(uri)
    claim = store.claim(STEP, "first")
    assert claim is not None
    assert Store(uri).claim(STEP, "other") is None
    claim.fail("diverged", "some.log")
    failure = store.failure(STEP.id)
    assert failure is not None
    assert (failure["error"], failure["run"], failure["log"]) == ("diverged", "first", "some.log")
    assert store.claim(STEP, "first") is None  # not again in the same run
    assert done(store)["attempts"] == 2
    assert store.failure(STEP.id) is None


def _hold(root: str, claimed: Any) -> None:
    claim = Store(root).claim(STEP, "dead")
    assert claim is not None
    claim.store.files.write(f"steps/{STEP.id}/{claim.output}/a.safetensors", b"weig")
    claimed.set()
    time.sleep(60)


def test_the_claim_of_a_killed_process_is_taken_over_at_once_and_its_output_goes(uri: str) -> None:
    claimed = SPAWN.Event()
    holder = SPAWN.Process(target=_hold, args=(uri, claimed))
    holder.start()
    assert claimed.wait(30)
    assert Store(uri).claim(STEP, "run") is None
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    store = Store(uri)
    assert store.files.names(f"steps/{STEP.id}/output-0001")
    assert done(store)["attempts"] == 2
    assert not store.files.names(f"steps/{STEP.id}/output-0001")
    assert (store.output(STEP.id) / "a.safetensors").read_text() == "weights"


def test_a_silent_holder_on_another_host_is_overruled_after_the_lease(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(uri)
    claim = store.claim(STEP, "far")
    assert claim is not None
    monkeypatch.setattr(heartbeat, "_host", lambda: "another host")
    monkeypatch.setattr(heartbeat, "LEASE", 0.3)
    assert store.claim(STEP, "run") is None
    key = f"steps/{STEP.id}/attempts/0001.claim"
    for beat in range(5):  # a heartbeat that changes keeps it, however long it takes
        time.sleep(0.15)
        holder = json.loads(store.files.read(key) or b"")
        store.files.write(key, json.dumps(holder | {"beat": beat + 100}).encode())
        assert store.claim(STEP, "run") is None
    time.sleep(0.4)
    assert store.claim(STEP, "run") is not None


def _race(root: str, targets: int, started: Any) -> list[str]:
    store, mine = Store(root), []
    started.wait()
    for i in range(targets):
        step = Step(f"merge-{i}", "merge", "", {}, {}, {})
        while store.record(step.id) is None:
            claim = store.claim(step, "run")
            if claim is None:
                time.sleep(0.001)
                continue
            mine.append(step.id)
            (claim.folder / "out").write_text(str(os.getpid()))
            claim.commit({})
    return mine


@pytest.mark.parametrize(("workers", "targets"), [(1, 5), (2, 5), (3, 3), (5, 20)])
def test_every_step_is_carried_out_exactly_once(uri: str, workers: int, targets: int) -> None:
    with SPAWN.Manager() as manager, SPAWN.Pool(workers) as pool:
        started = manager.Event()
        futures = [pool.apply_async(_race, (uri, targets, started)) for _ in range(workers)]
        started.set()
        carried_out = [step for future in futures for step in future.get(60)]
    assert sorted(carried_out) == sorted(f"merge-{i}" for i in range(targets))


def test_of_two_finishers_one_record_stands_and_its_output_is_whole(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(uri)
    slow = store.claim(STEP, "slow")
    assert slow is not None
    monkeypatch.setattr(Store, "_dead", lambda *_: True)
    quick = store.claim(STEP, "quick")
    assert quick is not None
    for claim in (quick, slow):
        (claim.folder / "out").write_text(claim.run)
    assert quick.commit({})["run"] == "quick"
    assert slow.commit({})["run"] == "quick"
    assert (store.output(STEP.id) / "out").read_text() == "quick"


@pytest.mark.parametrize("damage", [b"weigh", b"weightz", None])
def test_a_damaged_output_is_noticed_retracted_and_can_be_computed_again(uri: str, damage: bytes | None) -> None:
    store = Store(uri)
    record = done(store)
    key = f"steps/{STEP.id}/{record['output']}/a.safetensors"
    store.files.remove(key) if damage is None else store.files.write(key, damage)
    if store.cache is not None:
        store.cache.drop(f"steps/{STEP.id}/{record['output']}")  # another machine than the one that wrote it
    with pytest.raises(CorruptOutput, match=r"a\.safetensors"):
        store.output(STEP.id)
    assert store.record(STEP.id) is None
    assert len(store.retractions(STEP.id)) == 1
    done(store, content="again")
    assert (store.output(STEP.id) / "a.safetensors").read_text() == "again"


def test_records_and_claims_that_a_power_cut_left_empty_hold_nobody_up(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(uri)
    done(store)
    store.files.write(f"steps/{STEP.id}/record.json", b"")
    assert store.record(STEP.id) is None
    assert store.retractions(STEP.id) == ["its record is damaged"]
    claim = store.claim(STEP, "before")
    assert claim is not None
    store.files.write(f"steps/{STEP.id}/attempts/0002.claim", b"")
    monkeypatch.setattr(heartbeat, "LEASE", 0.1)
    assert store.claim(STEP, "after") is None
    time.sleep(0.2)
    assert done(store)["attempts"] == 3


def test_a_path_that_cannot_be_a_store_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="give a path, local or"):
        Store("ftp://host/store")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(file).claim(STEP, "run")


def test_scratch_goes_when_the_training_is_done(tmp_path: Path) -> None:
    store, training = Store(tmp_path), replace(STEP, id="train-0", kind="train")
    Path(store.scratch(training.id)).mkdir(parents=True)
    done(store, training)
    assert not Path(store.scratch(training.id)).exists()
