"""`sacpo report --serve`: progress, running and failed steps with their logs, report and curves; nothing is written."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from sacpo import report
from sacpo.results.kept_plan import read_kept_plan
from sacpo.results.sweep_facts import read_facts
from sacpo.runs.serve_run import LiveView, server
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import Store
from tests.commands import call
from tests.results_folders import snapshot


@pytest.fixture
def port(copied: Path) -> Iterator[int]:
    http = server(LiveView(ResultsLocation(copied)), 0)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http.server_port
    http.shutdown()
    http.server_close()
    thread.join()


def get(port: int, path: str, host: str = "127.0.0.1") -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": f"{host}:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_finished_sweep_is_shown_and_nothing_is_written(copied: Path, port: int) -> None:
    before = snapshot(copied)
    status = json.loads(get(port, "/status.json")[1])
    assert status["done"] == status["steps"] > 0
    assert not status["is_running"]
    assert status["running"] == status["failed"] == []
    assert b"/status.json" in get(port, "/")[1]
    assert read_facts(copied).name.encode() in get(port, "/report.html")[1]
    assert get(port, "/curves.png")[1].startswith(b"\x89PNG")
    assert snapshot(copied) == before


def test_running_and_failed_steps_are_named_and_a_log_can_be_read(copied: Path, port: int) -> None:
    store, plan, facts = Store(copied / "store"), read_kept_plan(copied), read_facts(copied)
    first, second = [step for step in plan.steps.values() if step.kind == "judge"][:2]
    for step in (first, second):
        store.retract(step.id, "for a test")
    running = store.claim(first, "another run")
    failing = store.claim(second, facts.runs[-1].run)
    assert running is not None
    assert failing is not None
    log = store.log_dir(second.id) / "0001" / "worker.log"
    log.parent.mkdir(parents=True)
    log.write_text("x" * 200_000 + "the reason <b>")
    failing.fail("it failed", store.latest_log(second.id))
    status = json.loads(get(port, "/status.json")[1])
    running.release()
    assert status["done"] == status["steps"] - 2
    assert [(step["label"], step["kind"]) for step in status["running"]] == [(first.label, "judge")]
    assert [(step["label"], step["error"], step["has_log"]) for step in status["failed"]] == [
        (second.label, "it failed", True)
    ]
    code, text = get(port, f"/log?step={second.id}")
    assert code == 200
    assert text.endswith(b"the reason <b>")
    assert len(text) == 100_000


def test_a_browser_that_leaves_before_the_answer_disturbs_nothing(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it closes by a reset
            gone.sendall(f"GET /report.html HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    assert get(port, "/report.html")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "path", ["/log?step=../../plan.json", "/log?step=judge-unknown", "/store/sweeps", "/../plan.json"]
)
def test_other_files_are_not_served(port: int, path: str) -> None:
    assert get(port, path)[0] == 404


def test_a_page_of_another_site_is_refused(port: int) -> None:
    assert get(port, "/status.json", host="attacker.example")[0] == 403


def test_a_place_without_results_and_a_port_in_use_are_refused(tmp_path: Path, copied: Path, port: int) -> None:
    assert "is not a results folder" in call(report.main, str(tmp_path), "--serve").stderr
    answer = call(report.main, str(copied), "--serve", "--port", str(port))
    assert answer.returncode == 2
    assert "give another port" in answer.stderr
