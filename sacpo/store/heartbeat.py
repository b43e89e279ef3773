"""Heartbeats: a holder (of a claim, of a running sweep) writes a file at intervals; observers detect when it stops.

`LEASE_S` and `HEARTBEAT_S` are read at every use, so a test may replace them.
"""

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

LEASE_S = 30.0
"""Seconds without a heartbeat after which a holder counts as dead."""
HEARTBEAT_S = 5.0
"""Seconds between two heartbeats."""


class Heartbeat:
    """Calls a function at intervals, in a daemon thread, from `start` to `stop`.

    Args:
        beat: The function. Its OSError and StoreError are ignored: a store that is unreachable for a while may recover,
            and if it does not, the lease ends.
        interval_s: Seconds between two calls; None for `HEARTBEAT_S`.
    """

    def __init__(self, beat: Callable[[], None], interval_s: float | None = None) -> None:
        self._beat = beat
        self._interval_s = HEARTBEAT_S if interval_s is None else interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Start the thread; the first call comes after one interval."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            with contextlib.suppress(OSError, StoreError):
                self._beat()

    def stop(self) -> None:
        """Stop the thread and wait until a call in progress has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()


def current_process() -> dict[str, Any]:
    """Identity of this process, by which others can check whether it lives: `host`, `pid` and `started`."""
    pid = os.getpid()
    return {"host": _host(), "pid": pid, "started": start_ticks(pid)}


def is_stale(holder: dict[str, Any], key: str, content: bytes) -> bool:
    """Whether a holder counts as dead: its process on this host has ended, or its heartbeat is older than `LEASE_S`.

    A live process can also stop its heartbeat, when its disk is full.

    Args:
        holder: The holder's identity (`current_process`).
        key: A name of the heartbeat's file that is unique in this process.
        content: The present content of the file, which changes with every heartbeat.
    """
    if holder["host"] == _host() and not _is_alive(holder["pid"], holder["started"]):
        return True
    return _seconds_unchanged(key, content) > LEASE_S


@functools.cache
def _host() -> str:
    """Name of the host, its boot id and its process-id namespace. A process id has a meaning only inside all three."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return f"{socket.gethostname()} {uuid.getnode()}"


def start_ticks(pid: int) -> str:
    """Start of a process in clock ticks since boot, which tells reused process ids apart.

    Empty if the process has ended, and on systems without `/proc`.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    is_zombie = fields[0] == "Z"
    return "" if is_zombie else fields[19]


def _is_alive(pid: int, started: str) -> bool:
    return bool(started) and start_ticks(pid) == started


_observations: dict[str, tuple[bytes, float, float]] = {}
"""By the heartbeat's key: its content, when this process first saw that content, and when it looked last."""


def _seconds_unchanged(key: str, content: bytes) -> float:
    """For how many seconds of its own clock this process has observed the same content.

    An observation that paused starts again: after an outage of the store, everyone's last heartbeat is old, and holders
    need time for the next one.
    """
    now = time.monotonic()
    previous, since, last_look = _observations.get(key, (b"", 0.0, 0.0))
    if previous != content or now - last_look > 2 * HEARTBEAT_S:
        since = now
    _observations[key] = content, since, now
    return now - since
