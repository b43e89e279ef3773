"""Fixtures that several files share: a Ray cluster on this machine, an S3 service, and the results of small sweeps.

The Makefile runs the tests in two processes (pytest-xdist). All tests on the Ray cluster run in one of them, so that
one cluster starts. The results of small sweeps are made once, and both processes read them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import Answer, sweep, sweep_here, write_space
from tests.s3 import Service
from tests.spaces import small

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models of tests are too small for more, and other processes compute too
os.environ.setdefault("RAY_worker_niceness", "0")  # else Ray's workers wait for the tests of the other process


@pytest.fixture(scope="session", autouse=True)
def small_generation_cache() -> Iterator[None]:
    """Bound the cache of continuous batching, for which transformers would allocate most of the machine's memory."""
    from tests.models import bound_generation_cache

    with pytest.MonkeyPatch.context() as patch:
        bound_generation_cache(patch.setattr)
        yield


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster with two CPUs and a temporary folder of its own; all tests of a session share it."""
    from sacpo.cluster import tuner

    # Ray creates Unix sockets in this folder. The folders of pytest-xdist have paths that are too long for them.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        tuner.cluster("local", num_cpus=2, _temp_dir=folder),
    ):
        yield


@pytest.fixture
def on_cluster(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process use that cluster instead of starting one."""
    from sacpo.cluster import tuner

    monkeypatch.setattr(tuner, "cluster", lambda *_, **__: contextlib.nullcontext())


@pytest.fixture(scope="session")
def worker_group(ray_cluster: None) -> Iterator[Callable[[str], None]]:
    """Announces a stage of two workers, and another one after it, so that its worker group waits for the next test."""
    from sacpo.cluster.worker_groups import GROUPS, RunningStep

    yield lambda stage: GROUPS.follow([RunningStep(name, 2, is_stage=True) for name in (stage, "a later stage")], 2)
    GROUPS.follow(None, slots=0)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An S3 service with an empty bucket. Its keys and a cache folder stay in the environment of the session."""
    os.environ["SACPO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    service = Service(tmp_path_factory.mktemp("s3") / "log")
    yield service
    service.close()


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of a new store: a path with special characters, and a bucket."""
    if request.param == "folder":
        return str(tmp_path / "odd 'name\"\\ of\na store")
    service: Service = request.getfixturevalue("s3")
    return service.uri(f"{uuid.uuid4().hex}/store")


def sweep_once(factory: pytest.TempPathFactory, name: str, run: Callable[[Path], Answer]) -> Path:
    """The results folder of a sweep that one process of the session runs; the other one waits for it meanwhile."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, complete = root / name, root / f"{name}.complete"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            folder.mkdir(exist_ok=True)
            answer = run(folder)
            assert answer.returncode == 0, answer.stdout + answer.stderr
            complete.touch()
    return folder / "results"


@pytest.fixture(scope="session")
def small_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a small sweep through Ray Tune and Ray Train, by the command in a process of its own.

    Two workers train under ZeRO-3.
    """

    def run(folder: Path) -> Answer:
        return sweep(write_space(small(resources__workers=2), folder), folder / "results")

    return sweep_once(tmp_path_factory, "small-ray", run)


@pytest.fixture(scope="session")
def in_process_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the same sweep, carried out in this process without Ray."""

    def run(folder: Path) -> Answer:
        return sweep_here(write_space(small(), folder), folder / "results")

    return sweep_once(tmp_path_factory, "small-in-process", run)


@pytest.fixture
def copied(in_process_results: Path, tmp_path: Path) -> Path:
    """A copy of that results folder, its store inside."""
    return Path(shutil.copytree(in_process_results, tmp_path / "results"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow tests, and arrange all tests for two processes.

    Tests on a Ray cluster or on a bucket are slow. The sweep of `small_results` is the one that is not. Tests on the
    cluster are one group, which starts first. Its last tests are those on the worker group that waits for the next
    stage and holds the cluster's CPUs: first those of one file, whose fixture `base` needs these CPUs, then others.
    Then come the other slow tests, each by itself, those with the longest timeout first, and last the fast ones, by
    file, so that the two processes end at about the same time.
    """
    on_ray = {item.path for item in items if "small_results" in getattr(item, "fixturenames", ())}
    order: dict[str, tuple[int, float]] = {}
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if {"ray_cluster", "s3"} & fixtures:
            item.add_marker(pytest.mark.slow)
        if "ray_cluster" in fixtures:
            item.add_marker(pytest.mark.xdist_group("ray"))
            order[item.nodeid] = 0, 0.0 if "worker_group" not in fixtures else 1.0 if "base" in fixtures else 2.0
        elif item.get_closest_marker("slow"):
            timeout = item.get_closest_marker("timeout")
            order[item.nodeid] = 1, -timeout.args[0] if timeout else 0.0
        else:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
            order[item.nodeid] = 2 if item.path in on_ray else 3, 0.0
    items.sort(key=lambda item: order[item.nodeid])
