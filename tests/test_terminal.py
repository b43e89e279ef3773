"""What a sweep through Ray shows on a real terminal: a pty of 40 lines, read by a terminal emulator."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import time
from pathlib import Path

import pytest

from tests.commands import arguments, write_space
from tests.results_folders import drop_records
from tests.spaces import ROOT, small

LINES, COLUMNS = 40, 120


def screens(command: list[str], status: int = 0, timeout: float = 500.0) -> list[str]:
    """Run a command that ends with this status on a pty; the screen about every second, and last all that it showed."""
    import pyte

    process, terminal = pty.fork()
    if not process:
        os.chdir(ROOT)
        os.execvpe(command[0], command, os.environ | {"TERM": "xterm-256color"})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    screen = pyte.HistoryScreen(COLUMNS, LINES, history=1000)
    stream, shown = pyte.ByteStream(screen), list[str]()
    read_at = deadline = time.monotonic()
    while time.monotonic() < deadline + timeout:
        try:
            output = os.read(terminal, 2**16)
        except OSError:  # the command has ended
            break
        stream.feed(output)
        if time.monotonic() - read_at > 1.0:
            shown.append("\n".join(screen.display))
            read_at = time.monotonic()
    history = ["".join(line[i].data for i in range(COLUMNS)) for line in screen.history.top]
    shown.append("\n".join([*history, *screen.display]))
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == status, shown[-1]
    return shown


@pytest.mark.slow
def test_a_terminal_shows_what_runs_now_and_one_table_in_the_end(copied: Path, tmp_path: Path) -> None:
    drop_records(copied, "judge", "generate")
    *during, end = screens(arguments(write_space(small(), tmp_path), copied))
    assert any(" on " in line and "generate" in line for screen in during for line in screen.splitlines())
    assert any(" steps done" in screen for screen in during)
    assert " steps done" not in end
    assert sum(line.split()[:1] == ["sft"] for line in end.splitlines()) == 1, end
    for foreign in ("Trial _trial", "Failed to fetch metrics", "INFO", "(pid"):
        assert foreign not in end, end
    assert "Trial" in (copied / "sweep.log").read_text(errors="replace")


@pytest.mark.slow
def test_a_refused_run_leaves_nothing_behind(tmp_path: Path) -> None:
    results = tmp_path / "results"
    *_, end = screens(arguments(write_space(small(chains=[]), tmp_path), results), status=2)
    assert "chains" in end
    assert not results.exists()
