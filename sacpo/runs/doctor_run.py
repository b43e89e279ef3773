"""Checks whether this machine can run a sweep: each finding names the problem and the way out."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

from packaging.requirements import Requirement

GOOD, NOTE, PROBLEM = "ok", "note", "PROBLEM"
_SOCKET_PATH_BYTES = 107  # the longest path of a Unix socket (unix(7))
_RAY_SOCKET_SUFFIX = len("/ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store")
_MIN_MEMORY_GB, _MIN_DISK_GB, _MIN_OPEN_FILES = 6.0, 2.0, 4096


@dataclass(frozen=True)
class Finding:
    """The result of one check: `level` is `ok`, `note` (a sweep runs, with a limit) or `PROBLEM`."""

    level: str
    text: str


def findings() -> Iterator[Finding]:
    """The results of all checks, in a fixed order; none of them changes anything."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _packages,
        _compiler_and_accelerators,
        _memory,
        _disk,
        _open_files,
        _temporary_folder,
        _loopback,
        _hub,
    ]
    for check in checks:
        yield from check()


def _packages() -> Iterator[Finding]:
    """Every requirement of this package, without those of extras."""
    wrong = []
    for text in metadata.requires("sacpo") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is installed, {requirement.specifier} is needed")
    python = ".".join(map(str, sys.version_info[:3]))
    if wrong:
        way_out = "install into a new environment: pip install --constraint constraints.txt ."
        yield Finding(PROBLEM, f"packages: {'; '.join(wrong)}; {way_out}")
    else:
        yield Finding(GOOD, f"packages: all requirements are installed (Python {python})")


def _compiler_and_accelerators() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return  # named by `_packages`
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        bf16 = "" if torch.cuda.is_bf16_supported() else "; bfloat16 is not supported: set model.dtype to float32"
        yield Finding(NOTE if bf16 else GOOD, f"accelerators: {names}{bf16}")
        return
    if shutil.which("nvidia-smi"):
        yield Finding(
            PROBLEM,
            f"accelerators: nvidia-smi is there, but torch {torch.__version__} sees no GPU; install a CUDA build of "
            "torch that fits the driver, or set resources.gpus_per_worker to 0",
        )
    else:
        from sacpo.execution.processor import has_fast_bfloat16

        slow = "" if has_fast_bfloat16() else "; this processor computes slowly in bfloat16: set model.dtype to float32"
        text = f"accelerators: none; set resources.gpus_per_worker to 0 (the default) to train on CPUs{slow}"
        yield Finding(NOTE, text)
    if shutil.which("g++") is None:
        yield Finding(
            PROBLEM,
            "compiler: there is no g++, with which DeepSpeed builds its communication between CPU workers; install it "
            "(Debian: apt-get install g++), or run sweeps with --address in-process",
        )
    else:
        yield Finding(GOOD, "compiler: g++ is there")


def _memory() -> Iterator[Finding]:
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * size / 1e9
    text = f"machine: {os.cpu_count()} CPUs, {total:.0f} GB of memory, {pages * size / 1e9:.0f} GB of it unused"
    if total < _MIN_MEMORY_GB:
        way_out = f"the quickstart on Ray needs about {_MIN_MEMORY_GB:.0f} GB; use --address in-process"
        yield Finding(NOTE, f"{text}; {way_out}")
    else:
        yield Finding(GOOD, text)


def _disk() -> Iterator[Finding]:
    folder = Path.cwd()
    if not os.access(folder, os.W_OK):
        yield Finding(NOTE, f"disk: {folder} cannot be written; give --results a folder that can")
        return
    free = shutil.disk_usage(folder).free / 1e9
    text = f"disk: {free:.0f} GB free in {folder}"
    if free < _MIN_DISK_GB:
        yield Finding(PROBLEM, f"{text}; each policy needs its weights and a checkpoint: free some, or give --store")
    else:
        yield Finding(GOOD, text)


def _open_files() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _MIN_OPEN_FILES:
        way_out = f"raise it: ulimit -n {min(hard, 65536) if hard > 0 else 65536}"
        yield Finding(NOTE, f"open files: the limit is {soft}, and Ray opens many; {way_out}")
    else:
        yield Finding(GOOD, f"open files: the limit is {soft}")


def _temporary_folder() -> Iterator[Finding]:
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(folder) + _RAY_SOCKET_SUFFIX > _SOCKET_PATH_BYTES:
        limit = _SOCKET_PATH_BYTES - _RAY_SOCKET_SUFFIX
        yield Finding(
            PROBLEM,
            f"temporary folder: {folder} is longer than {limit} characters, and Ray cannot create its sockets there; "
            "set RAY_TMPDIR to a short path, such as /tmp",
        )
    else:
        yield Finding(GOOD, f"temporary folder: {folder}")


def _loopback() -> Iterator[Finding]:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        yield Finding(PROBLEM, f"loopback: 127.0.0.1 cannot be reached ({error}); Ray needs it")
        return
    if getproxies() and not proxy_bypass("127.0.0.1"):
        yield Finding(
            PROBLEM,
            "loopback: a proxy is set and used for 127.0.0.1 too, where judges' endpoints and Ray may be; set "
            "no_proxy=127.0.0.1,localhost",
        )
    else:
        yield Finding(GOOD, "loopback: 127.0.0.1 can be reached")


def _hub() -> Iterator[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        yield Finding(NOTE, "hub: HF_HUB_OFFLINE is set; models and data must be local, or in the hub's cache")
