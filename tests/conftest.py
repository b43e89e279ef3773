"""Fixtures that several files share: a Ray cluster on this machine, an S3 service, and the results of small sweeps."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import Service

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def small_generation_cache() -> Iterator[None]:
    """Bound the cache of continuous batching, for which transformers would allocate most of the machine's memory."""
    from tests.models import bound_generation_cache

    with pytest.MonkeyPatch.context() as patch:
        bound_generation_cache(patch.setattr)
        yield


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local cluster with two CPUs and a temporary folder of its own; all tests of a session share it."""
    from sacpo.cluster import tuner

    # Ray creates Unix sockets in this folder, so its path must be short.
    with tuner.cluster("local", num_cpus=2, _temp_dir=str(tmp_path_factory.mktemp("ray"))):
        yield


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


@pytest.fixture(scope="session")
def small_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a small sweep through Ray Tune and Ray Train, by the command in a process of its own.

    Two workers train under ZeRO-3.
    """
    from tests.commands import sweep, write_space
    from tests.spaces import small

    folder = tmp_path_factory.mktemp("small")
    answer = sweep(write_space(small(resources__workers=2), folder), folder / "results")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder / "results"


@pytest.fixture(scope="session")
def in_process_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the same sweep, carried out in this process without Ray."""
    from tests.commands import sweep_here, write_space
    from tests.spaces import small

    folder = tmp_path_factory.mktemp("small")
    answer = sweep_here(write_space(small(), folder), folder / "results")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder / "results"


@pytest.fixture
def copied(in_process_results: Path, tmp_path: Path) -> Path:
    """A copy of that results folder, its store inside."""
    return Path(shutil.copytree(in_process_results, tmp_path / "results"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on a Ray cluster or on a bucket are slow. The sweep of `small_results` is the one that is not."""
    for item in items:
        if {"ray_cluster", "s3"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
