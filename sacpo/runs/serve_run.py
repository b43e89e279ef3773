"""`sacpo report RESULTS --serve`: a live view of a sweep on the loopback interface. It reads, and changes nothing."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sacpo.errors import SacpoError
from sacpo.planning.durations import remaining_steps
from sacpo.planning.records import StepRecord
from sacpo.reporting.curves import draw_curves
from sacpo.reporting.in_progress import steps_in_progress
from sacpo.reporting.page import write_html
from sacpo.reporting.plots import save_figure
from sacpo.results.curves import curves_table
from sacpo.results.kept_plan import read_kept_plan
from sacpo.results.load import load_folder
from sacpo.results.stored_outputs import StoredOutputs
from sacpo.results.sweep_facts import read_facts
from sacpo.runs.report_run import open_store
from sacpo.store.past_steps import past_steps
from sacpo.store.results_location import ResultsLocation

_LOG_BYTES = 100_000  # of a log, the end that is shown
_CACHE_S = 1.0  # several browser tabs ask the store once


class LiveView:
    """What the page shows, read from a results folder and its store.

    Args:
        location: The results folder.

    Raises:
        SacpoError: it is not a results folder, or its store cannot be read.
    """

    def __init__(self, location: ResultsLocation) -> None:
        self.location = location
        folder = location.fetch()
        self.plan = read_kept_plan(folder)
        self.store = open_store(location, read_facts(folder))
        self._past = past_steps(self.store, self.plan)
        self._lock = threading.Lock()
        self._status: tuple[float, dict[str, Any]] = (0.0, {})
        self._pictures: dict[str, tuple[object, bytes]] = {}
        self.records: dict[str, StepRecord] = {}

    def status(self) -> dict[str, Any]:
        """Progress, running and failed steps, the expected time to the end, and stamps that change with the content."""
        with self._lock:
            if time.monotonic() - self._status[0] > _CACHE_S or not self._status[1]:
                self._status = time.monotonic(), self._read_status()
            return self._status[1]

    def _read_status(self) -> dict[str, Any]:
        folder, plan = self.location.fetch(), self.plan
        facts = read_facts(folder)
        self.records = self.store.records(plan.steps)
        running = {step.step_id: asdict(step) for step in steps_in_progress(plan, self.store, self.records)}
        failed: list[dict[str, Any]] = []
        for step_id, step in plan.steps.items():
            known = step_id in self.records or step_id in running
            if known or not self.records.keys() >= set(step.parents.values()):
                continue
            if (failure := self.store.failure(step_id)) is not None and failure.run in facts.run_ids:
                failed.append(
                    {"step": step_id, "label": step.label, "error": failure.error, "has_log": failure.log is not None}
                )
        run = facts.runs[-1] if facts.runs else None
        is_running = run is not None and run.ended_at is None
        seconds = time.time() - run.started_at if run is not None and is_running else None
        done_now = sum(record.seconds for record in self.records.values() if run and record.run == run.run)
        held = sum(float(step["seconds"]) for step in running.values())
        remaining = remaining_steps(plan, self.records, self._past, [str(step["step"]) for step in failed])
        tables = folder / "trials.parquet"
        return {
            "name": plan.space.name,
            "steps": len(plan.steps),
            "done": len(self.records),
            "is_running": is_running,
            "seconds": seconds,
            "seconds_left": remaining.seconds_left(done_now, held, seconds or 0.0),
            "running": list(running.values()),
            "failed": failed,
            "tables": tables.stat().st_mtime_ns if tables.exists() else None,
            "trainings": sum(plan.steps[step_id].kind == "train" for step_id in self.records),
        }

    def report(self) -> bytes:
        """The page `report.html` made from the present tables.

        Raises:
            SacpoError: no trial has ended yet.
        """
        return self._picture("report.html", self.status()["tables"], self._write_report)

    def _write_report(self, path: Path) -> None:
        write_html(load_folder(self.location.folder), path)

    def curves(self) -> bytes:
        """The picture of the training curves of all stages that are done.

        Raises:
            SacpoError: no stage is done yet.
        """
        return self._picture("curves.png", self.status()["trainings"], self._draw_curves)

    def _draw_curves(self, path: Path) -> None:
        table = curves_table(StoredOutputs(self.plan, self.store, self.records, ()))
        if table.empty:
            raise SacpoError("no stage has been trained yet")
        save_figure(draw_curves(table), path, "png")

    def _picture(self, name: str, stamp: object, write: Callable[[Path], None]) -> bytes:
        """A file that is made again when its stamp changes."""
        with self._lock, tempfile.TemporaryDirectory() as folder:
            if self._pictures.get(name, (None,))[0] != stamp or name not in self._pictures:
                write(Path(folder) / name)
                self._pictures[name] = stamp, (Path(folder) / name).read_bytes()
            return self._pictures[name][1]

    def log(self, step_id: str) -> bytes:
        """The end of the log of a step's latest failure.

        Raises:
            SacpoError: the plan has no such step, or there is no log.
        """
        failure = self.store.failure(step_id) if step_id in self.plan.steps else None
        content = None if failure is None or failure.log is None else self.store.files.read(failure.log)
        if content is None:
            raise SacpoError(f"there is no log of {step_id!r}")
        return content[-_LOG_BYTES:]


def server(view: LiveView, port: int) -> ThreadingHTTPServer:
    """An HTTP server of the view on 127.0.0.1; `serve_forever` starts it.

    Args:
        view: The view.
        port: The port; 0 for any free one.

    Raises:
        SacpoError: the port is in use.
    """

    class Handler(_Handler):
        pass

    Handler.view = view
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise SacpoError(f"--port {port}: {error.strerror}; give another port, or 0 for any free one") from None


class _Handler(BaseHTTPRequestHandler):
    """Answers GET requests of a browser on this machine."""

    view: LiveView

    def do_GET(self) -> None:
        """Answer a request; a page of another site that uses a name for this address is refused."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost"):
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"open the page by the address 127.0.0.1")
            return
        url = urlsplit(self.path)
        try:
            match url.path:
                case "/":
                    page = resources.files("sacpo.reporting").joinpath("templates/live.html").read_bytes()
                    self._answer(HTTPStatus.OK, "text/html", page)
                case "/status.json":
                    self._answer(HTTPStatus.OK, "application/json", json.dumps(self.view.status()).encode())
                case "/report.html":
                    self._answer(HTTPStatus.OK, "text/html", self.view.report())
                case "/curves.png":
                    self._answer(HTTPStatus.OK, "image/png", self.view.curves())
                case "/log":
                    step = parse_qs(url.query).get("step", [""])[0]
                    self._answer(HTTPStatus.OK, "text/plain", self.view.log(step))
                case _:
                    self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such page")
        except SacpoError as error:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", str(error).encode())

    def _answer(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{content_type}; charset=utf-8" if "text" in content_type else content_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        with contextlib.suppress(ConnectionError):  # the browser has left the page
            self.end_headers()
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Print no line for each request."""
