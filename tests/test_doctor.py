"""`sacpo doctor`: each check names its problem and the way out, and none fails on a machine that runs these tests."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from importlib import metadata

import pytest

from sacpo import doctor
from sacpo.runs.doctor_run import NOTE, PROBLEM, findings
from tests.commands import call


def test_this_machine_has_no_problem() -> None:
    answer = call(doctor.main)
    assert answer.returncode == 0, answer.stdout
    assert "packages: all requirements are installed" in answer.stdout


def missing_package(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(metadata, "requires", lambda _: ["numpy>=99", "no-such-package", 'other; extra == "aws"'])


def no_compiler(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shutil, "which", lambda name: None)


def driver_without_cuda(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def few_files(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(resource, "getrlimit", lambda _: (1024, 1_000_000))


def long_folder(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)


def proxy(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("http_proxy", "http://proxy.example:3128")
    patch.delenv("no_proxy", raising=False)
    patch.delenv("NO_PROXY", raising=False)


def read_only_folder(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("os.access", lambda *_: False)


@pytest.mark.parametrize(
    ("cause", "level", "expected"),
    [
        (missing_package, PROBLEM, "is installed, >=99 is needed; no-such-package is not installed; install into"),
        (no_compiler, PROBLEM, "there is no g++"),
        (driver_without_cuda, PROBLEM, "install a CUDA build of torch"),
        (few_files, NOTE, "ulimit -n 65536"),
        (long_folder, PROBLEM, "set RAY_TMPDIR to a short path"),
        (proxy, PROBLEM, "no_proxy=127.0.0.1,localhost"),
        (read_only_folder, NOTE, "give --results a folder that can"),
    ],
)
def test_a_problem_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, cause: Callable[[pytest.MonkeyPatch], None], level: str, expected: str
) -> None:
    cause(monkeypatch)
    texts = [finding.text for finding in findings() if finding.level == level]
    assert any(expected in text for text in texts), texts


def test_requirements_of_extras_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    missing_package(monkeypatch)
    assert not any("other" in finding.text for finding in findings())
