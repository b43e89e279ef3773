"""The files that judge calls share between processes: stored replies, their keys, and counts of calls and spend."""

from __future__ import annotations

import contextlib
import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from sacpo.judges.endpoint import Endpoint
from sacpo.judges.ledger import BudgetExceeded, Ledger, Meter, call_key


def count_calls(folder: str, started: Barrier) -> None:
    """Count 1000 calls of price 1 each, as far as the limit of 1500 calls allows."""
    meter = Meter(folder, 1500, None, (1.0, 2.0))
    started.wait()
    for _ in range(1000):
        with contextlib.suppress(BudgetExceeded):
            meter.before_call()
            meter.after_call(1_000_000, 0)


def test_the_meter_counts_over_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = context.Barrier(2)
    workers = [context.Process(target=count_calls, args=(str(tmp_path), started)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert Meter(tmp_path, None, None, (1.0, 2.0)).used() == (1500, 1500.0)


def test_a_ledger_survives_a_killed_writer(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "one")
    ledger.add("a", {"outcome": "first"})
    with ledger.path.open("a") as file:
        file.write('{"key": "b", "row": {"outco')
    Ledger(tmp_path, "one").add("c", {"outcome": "tie"})
    Ledger(tmp_path, "two").add("d", {"outcome": "unparsable"})
    reader = Ledger(tmp_path, "three")
    assert [bool(reader.get(key)) for key in "abcd"] == [True, False, True, False]


def test_a_later_row_replaces_an_earlier_one_of_any_writer(tmp_path: Path) -> None:
    Ledger(tmp_path, "two").add("a", {"outcome": "first"})
    Ledger(tmp_path, "one").add("a", {"outcome": "unavailable"})
    assert Ledger(tmp_path, "three").get("a") is None
    Ledger(tmp_path, "one").add("a", {"outcome": "tie", "raw": "\ud800"})
    assert Ledger(tmp_path, "three").get("a") == {"outcome": "tie", "raw": "?"}


def test_the_key_of_a_call_is_its_content() -> None:
    endpoint = Endpoint("m", "r", base_url="http://a", concurrency=1, attempts=2, timeout_s=3, price_prompt=4)
    same_judge = Endpoint("m", "r")
    assert call_key(endpoint.identity(), "p", "a", "b", 0) == call_key(same_judge.identity(), "p", "a", "b", 0)
    keys = {
        call_key(same_judge.identity(), *content)
        for content in (("p", "a", "b", 0), ("p", "b", "a", 0), ("p", "a", "b", 1))
    }
    keys |= {call_key(Endpoint("m", "another").identity(), "p", "a", "b", 0)}
    assert len(keys) == 4
