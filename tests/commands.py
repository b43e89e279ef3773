"""The project's commands as a user runs them: in a process of their own, or in the calling process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path
from typing import Any

import yaml

from tests.spaces import ROOT

Answer = subprocess.CompletedProcess[str]
FOUR_CPUS = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 4}'}
"""Environment of a command whose local cluster has four logical CPUs: a group of two workers waits for its next stage
while the steps before that stage use the other CPUs. With two CPUs every stage would start a group."""


def write_space(data: dict[str, Any], folder: Path) -> Path:
    """Write a space file with this content."""
    path = folder / f"{data['name']}.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def arguments(space: Path, results: str | Path, *more: str) -> list[str]:
    """The command line of a sweep."""
    return [sys.executable, "-m", "sacpo.sweep", str(space), "--results", str(results), *more]


def sweep(space: Path, results: str | Path, *more: str, timeout: float = 600.0) -> Answer:
    """Run a sweep to its end, in a process of its own."""
    return subprocess.run(
        arguments(space, results, *more),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | FOUR_CPUS,
        timeout=timeout,
        check=False,
    )


def sweep_here(space: Path, results: str | Path, *more: str) -> Answer:
    """Run a sweep to its end in the calling process, without Ray (`--address in-process`)."""
    from sacpo.sweep import main

    return call(main, str(space), "--results", str(results), "--address", "in-process", *more)


def run(*command: str) -> Answer:
    """Run one of the package's modules to its end, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False
    )


def call(main: Callable[[list[str]], int], *argv: str) -> Answer:
    """Run a command's `main` in the calling process, with its output captured."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "stdout", Path(folder) / "stderr"
        try:
            with _captured(output, errors):
                status = main(list(argv))
        except SystemExit as error:  # argparse refuses an argument, or a benchmark ends with a message
            status = error.code if isinstance(error.code, int) else 1
            errors.write_text(errors.read_text() + ("" if isinstance(error.code, int) else str(error.code)))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return Answer(list(argv), status, output.read_text(), errors.read_text())


@contextlib.contextmanager
def _captured(output: Path, errors: Path) -> Iterator[None]:
    """Send the standard output and error to files meanwhile, also those of native code and of copies of fd 1."""
    saved = [(number, os.dup(number)) for number in (1, 2)]
    with output.open("a", buffering=1) as stdout, errors.open("a", buffering=1) as stderr:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        try:
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                yield
        finally:
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)


def free_port() -> int:
    """A free port of the loopback interface, for a process that cannot choose one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    """Return when a process that was started a moment ago accepts connections at a port of the loopback interface."""
    for _ in range(1200):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise TimeoutError(f"no process listens at port {port}")


def import_problem(modules: Iterable[str], libraries: Set[str]) -> str:
    """The first of the modules that loads one of the libraries in a fresh process, as text; empty if none does."""
    code = (
        f"import sys, importlib\nfor module in {sorted(modules)!r}:\n    importlib.import_module(module)\n"
        f"    loaded = sorted({set(libraries)!r} & sys.modules.keys())\n"
        "    if loaded: sys.exit(f'{module} loads {loaded}')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return result.stderr if result.returncode else ""
