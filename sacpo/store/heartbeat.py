"""Who holds something is alive as long as it says so: heartbeats, and what they mean to those who look."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sacpo.errors import StoreError

LEASE = 30.0
HEARTBEAT = 5.0


class Heartbeat:
    """Calls `beat` every so many seconds, in a thread, until it is stopped."""

    def __init__(self, beat: Callable[[], None], every: float = HEARTBEAT) -> None:
        self._beat, self._every = beat, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            with contextlib.suppress(OSError, StoreError):  # a store out of reach for a while; the lease decides
                self._beat()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()


def current_process() -> dict[str, Any]:
    """This process, as others can look for it: `host`, `pid`, `started`."""
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "started": _start_time(pid)}


def is_stale(holder: dict[str, Any], key: str, content: bytes) -> bool:
    """Whether a holder's process on this host is gone, or one anywhere has been silent for `LEASE` seconds.

    A live one may be silent too: it gave up where the disk was too full to say so.

    Args:
        holder: What it said of itself (`current_process`).
        key: What tells its heartbeat from others'.
        content: The heartbeat as it is now.
    """
    if holder["host"] == _host() and not _alive(holder["pid"], holder["started"]):
        return True
    return _seen_unchanged(key, content) > LEASE


@functools.cache
def _host() -> str:
    """This host, boot and process-id space: only there does a process id mean something."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()} {uuid.getnode()}"


def _start_time(pid: int) -> str:
    """When a process started, in ticks since boot, so that a reused process id is told apart; empty if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _alive(pid: int, started: str) -> bool:
    return bool(started) and _start_time(pid) == started


_seen: dict[str, tuple[bytes, float, float]] = {}


def _seen_unchanged(key: str, content: bytes) -> float:
    """For how many seconds this process has seen the file with the same content.

    Looking must not have paused: a store that was out of reach for everybody shows everybody's old heartbeat first.
    """
    now = time.monotonic()
    before, since, last = _seen.get(key, (b"", 0.0, 0.0))
    if before != content or now - last > 2 * HEARTBEAT:
        since = now
    _seen[key] = content, since, now
    return now - since
