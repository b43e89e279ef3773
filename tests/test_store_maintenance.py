"""`sacpo store`: what a store holds, garbage collection that takes nothing from a sweep, and verification."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sacpo import report
from sacpo.errors import StoreError
from sacpo.hashing import digest
from sacpo.planning.planner import make_plan
from sacpo.store.__main__ import main
from sacpo.store.backends import open_backend
from sacpo.store.maintenance import _marked, content, find_garbage
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import Store
from sacpo.store.sweep_registry import Registration, sweeps
from tests.commands import call, sweep_here, write_space
from tests.results_folders import snapshot, step_folders, tables
from tests.spaces import small, space

OTHER = "generate-0123456789abcdef0123"


def write_old(path: Path, size: int = 100) -> None:
    """Write a file that is older than the grace period."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (0, 0))


def age_all(store: Path) -> None:
    for path in store.rglob("*"):
        os.utime(path, (0, 0))


def test_ls_and_du_account_for_every_byte(copied: Path) -> None:
    write_old(copied / "store" / "steps" / OTHER / "output-0001" / "responses.parquet", 12_345)
    store = Store(copied / "store")
    before = snapshot(copied)
    holding = content(store)
    (use,) = holding.sweeps
    assert (use.name, use.results, use.state, use.done) == ("small", str(copied), "ended", use.steps)
    assert use.bytes == use.bytes_alone
    assert (holding.unneeded_steps, holding.unneeded_bytes) == (1, 12_345)
    assert use.bytes + 12_345 == sum(size for _, size in holding.kinds.values())
    total = sum(size for size, _ in snapshot(copied / "store").values())
    assert total == sum(size for _, size in holding.kinds.values()) + sum(holding.other.values())
    listing, usage = call(main, str(store.uri), "ls").stdout, call(main, str(store.uri), "du").stdout
    assert "12.3 kB" in listing
    assert str(copied) in listing
    assert usage.splitlines()[-1].split()[1] == str(len(step_folders(copied)))
    assert snapshot(copied) == before


def test_a_collection_leaves_registered_sweeps_and_live_work_alone(copied: Path) -> None:
    store = copied / "store"
    kept = dict(snapshot(store / "steps"))
    done = next(path.name for path in step_folders(copied) if path.name.startswith("train-"))
    age_all(store)
    write_old(store / "steps" / OTHER / "payload.json", 200)
    write_old(store / "steps" / done / "output-0000" / "model.safetensors", 3_000)  # of a killed attempt
    write_old(store / "checkpoints" / done / "checkpoint-1" / "state", 50)
    (store / "steps" / "judge-young").mkdir()
    (store / "steps" / "judge-young" / "payload.json").write_text("{}")
    plan = make_plan(space(name="inspected", seeds=[7]))
    claim = Store(store).claim([step for step in plan.steps.values() if step.kind == "train"][-1], "run")
    assert claim is not None
    held = claim.step.id
    age_all(store / "steps" / held)

    answer = call(main, str(store), "gc", "--dry-run")
    assert "would be removed" in answer.stdout
    assert (store / "steps" / OTHER).exists()
    answer = call(main, str(store), "gc")
    claim.release()
    assert answer.returncode == 0, answer.stderr
    assert "3.2 kB in 3 folders removed" in answer.stdout or "3.3 kB in 3 folders removed" in answer.stdout
    assert f"{held}: a live process works on it" in answer.stdout
    assert "judge-young: written in the last 3600 s" in answer.stdout
    assert not (store / "steps" / OTHER).exists()
    assert not (store / "checkpoints" / done).exists()
    assert set(kept) <= set(snapshot(store / "steps"))
    assert "0 damaged" in call(main, str(store), "verify").stdout


def test_only_named_sweeps_are_kept_and_those_that_run(copied: Path, tmp_path: Path) -> None:
    store = Store(copied / "store")
    plan = make_plan(space(name="other"))
    others = [step for step in plan.steps if not (copied / "store" / "steps" / step).exists()]
    before = tables(copied)
    pairs = snapshot(copied / "store" / "likelihoods")
    write_old(copied / "store" / "likelihoods" / OTHER / "pair-0.parquet")
    registration = Registration(plan, store, ResultsLocation(tmp_path / "other"), "run-of-other", ["sweep"], 1.0)
    with registration:
        for step in others:
            write_old(copied / "store" / "steps" / step / "payload.json")
        age_all(copied / "store" / "steps")
        assert "100 B in 1 folders" in call(main, store.uri, "gc", "--keep", "small").stdout
    unknown = call(main, store.uri, "gc", "--keep", "smal")
    assert unknown.returncode == 2
    assert "--keep smal: no such sweep" in unknown.stderr
    assert call(main, store.uri, "gc", "--keep", "small").returncode == 0
    assert snapshot(copied / "store" / "likelihoods") == pairs
    assert [status.name for status in sweeps(store)] == ["small"]
    assert not any((copied / "store" / "steps" / step).exists() for step in others)
    assert call(report.main, str(copied)).returncode == 0
    assert tables(copied) == before


def test_a_sweep_and_a_collection_exclude_each_other(copied: Path, tmp_path: Path) -> None:
    store = Store(copied / "store")
    registration = Registration(make_plan(space()), store, ResultsLocation(tmp_path), "late", ["sweep"], 1.0)
    with _marked(store):
        with pytest.raises(StoreError, match="run the same command again"), registration:
            raise AssertionError("it must not start")
        with pytest.raises(StoreError, match="another"), _marked(store):
            raise AssertionError("it must not start")
    assert [status.state for status in sweeps(store)] == ["done", "stopped"]
    (copied / "store" / "sweeps" / "late.plan.json").write_text("{")
    with pytest.raises(StoreError, match="late in sweeps/ are damaged"):
        find_garbage(store)


def test_damage_is_named_and_computed_again_if_asked(copied: Path, tmp_path: Path) -> None:
    store = copied / "store"
    damaged = next(path for path in step_folders(copied) if path.name.startswith("generate-"))
    answers = next(damaged.glob("output-*/responses.parquet"))
    answers.write_bytes(answers.read_bytes()[:-1])
    check = call(main, str(store), "verify")
    assert check.returncode == 1
    assert f"{damaged.name}: responses.parquet does not match its digest" in check.stdout
    assert (damaged / "record.json").exists()
    assert call(main, str(store), "verify", "--retract").returncode == 1
    assert not (damaged / "record.json").exists()
    assert sweep_here(write_space(small(), tmp_path), copied).returncode == 0
    assert call(main, str(store), "verify").returncode == 0


def test_files_and_digests_are_the_same_on_every_backend(uri: str) -> None:
    backend = open_backend(uri, "--store")
    backend.write("steps/a/record.json", b"one")
    backend.write("sweeps/run.json", b"three")
    assert {key: file.size for key, file in backend.files_below().items()} == {
        "steps/a/record.json": 3,
        "sweeps/run.json": 5,
    }
    assert set(backend.files_below("steps")) == {"steps/a/record.json"}
    assert backend.digest("steps/a/record.json") == digest(b"one")
    assert backend.digest("steps/b") is None
    assert backend.files_below("nothing") == {}


def test_a_place_without_a_store_is_refused(tmp_path: Path) -> None:
    answer = call(main, str(tmp_path / "nothing"), "ls")
    assert answer.returncode == 2
    assert "there is no store at" in answer.stderr
