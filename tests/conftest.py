"""Fixtures that several files share: a Ray cluster of this machine, and one small sweep run on it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import Service

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local cluster with two CPUs and a temporary folder of its own, shut down afterwards."""
    from sacpo.cluster import tuner

    # Unix sockets below it: the path must be short.
    with tuner.cluster("local", num_cpus=2, _temp_dir=str(tmp_path_factory.mktemp("ray"))):
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An S3 service with an empty bucket; its keys and a cache folder are in the environment from then on."""
    os.environ["SACPO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    service = Service(tmp_path_factory.mktemp("s3") / "log")
    yield service
    service.close()


@pytest.fixture(params=["folder", "bucket"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new store's: on a path with an odd name, and in a bucket."""
    if request.param == "folder":
        return str(tmp_path / "odd 'name\"\\ of\na store")
    service: Service = request.getfixturevalue("s3")
    return service.uri(f"{uuid.uuid4().hex}/store")


@pytest.fixture(scope="session")
def small_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a small sweep, run by the command itself in a process of its own."""
    from tests.commands import sweep, write_space
    from tests.spaces import small

    folder = tmp_path_factory.mktemp("small")
    answer = sweep(write_space(small(resources__workers=2), folder), folder / "results")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return folder / "results"
