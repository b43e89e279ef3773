"""Each step is done once, whoever asks; nothing half done is ever read."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sacpo import store as store_module
from sacpo.errors import StoreError
from sacpo.plan import Step
from sacpo.store import CorruptOutput, Store

SPAWN = multiprocessing.get_context("spawn")
STEP = Step("merge-0", "merge", "a step", {"q": 0.5}, {}, {})


def done(store: Store, step: Step = STEP, content: str = "weights") -> dict[str, Any]:
    claim = store.claim(step, "run")
    assert claim is not None
    (claim.folder / "a.safetensors").write_text(content)
    return claim.commit({"seconds": 1.0})


def test_a_step_is_done_when_its_record_is_there_and_then_claimed_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path / "odd 'name\"\\ of\na store")
    assert store.record(STEP.id) is None
    record = done(store)
    assert store.record(STEP.id) == record
    assert record["payload"] == STEP.payload
    assert (store.output(STEP.id) / "a.safetensors").read_text() == "weights"
    assert store.claim(STEP, "other") is None


def test_a_live_claim_keeps_others_out_and_a_failed_one_does_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    claim = store.claim(STEP, "first")
    assert claim is not None
    assert Store(tmp_path).claim(STEP, "other") is None
    claim.fail("diverged", "some.log")
    failure = store.failure(STEP.id)
    assert failure is not None
    assert (failure["error"], failure["run"], failure["log"]) == ("diverged", "first", "some.log")
    assert store.claim(STEP, "first") is None  # not again in the same run
    assert done(store)["attempts"] == 2
    assert store.failure(STEP.id) is None


def _hold(root: str, claimed: Any) -> None:
    assert Store(root).claim(STEP, "dead") is not None
    claimed.set()
    time.sleep(60)


def test_the_claim_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    claimed = SPAWN.Event()
    holder = SPAWN.Process(target=_hold, args=(str(tmp_path), claimed))
    holder.start()
    assert claimed.wait(30)
    assert Store(tmp_path).claim(STEP, "run") is None
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert done(Store(tmp_path))["attempts"] == 2


def test_a_silent_holder_on_another_host_is_overruled_after_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    claim = store.claim(STEP, "far")
    assert claim is not None
    monkeypatch.setattr(store_module, "_host", lambda: "another host")
    monkeypatch.setattr(store_module, "LEASE", 0.3)
    assert store.claim(STEP, "run") is None
    path = tmp_path / "steps" / STEP.id / "attempts" / "0001.claim"
    for beat in range(5):  # a heartbeat that changes keeps it, however long it takes
        time.sleep(0.15)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"beat": beat + 100}))
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
def test_every_step_is_carried_out_exactly_once(tmp_path: Path, workers: int, targets: int) -> None:
    with SPAWN.Manager() as manager, SPAWN.Pool(workers) as pool:
        started = manager.Event()
        futures = [pool.apply_async(_race, (str(tmp_path), targets, started)) for _ in range(workers)]
        started.set()
        carried_out = [step for future in futures for step in future.get(60)]
    assert sorted(carried_out) == sorted(f"merge-{i}" for i in range(targets))


def test_of_two_finishers_one_record_stands_and_its_output_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
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


@pytest.mark.parametrize("damage", ["truncate", "delete", "flip"])
def test_a_damaged_output_is_noticed_retracted_and_can_be_computed_again(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    done(store)
    path = store.output(STEP.id) / "a.safetensors"
    if damage == "delete":
        path.unlink()
    else:
        path.write_text("weigh" if damage == "truncate" else "weightz")
    with pytest.raises(CorruptOutput, match=r"a\.safetensors"):
        store.output(STEP.id)
    assert store.record(STEP.id) is None
    assert len(store.retractions(STEP.id)) == 1
    done(store, content="again")
    assert (store.output(STEP.id) / "a.safetensors").read_text() == "again"


def test_what_cannot_be_a_store_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="give a local path"):
        Store("s3://bucket/store")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Store(file).claim(STEP, "run")


def test_scratch_goes_when_the_step_is_done(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.scratch(STEP.id).mkdir(parents=True)
    done(store)
    assert not store.scratch(STEP.id).exists()
