"""Every space of tune_spaces/ can be planned in a fresh clone: without network and without files made beforehand."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from sacpo import sweep
from sacpo.planning import prompt_sets
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.spaces.evaluation import PromptFile
from sacpo.spaces.loading import load_space
from sacpo.spaces.space import Files
from tests.commands import call
from tests.spaces import ROOT

SPACES = sorted(path.name for path in (ROOT / "tune_spaces").glob("*.yaml"))
PAPER_PROMPTS = {"data/helpful_problem.json", "data/safety_problem.json"}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped spaces in a folder of their own, with the network refused."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the network is used")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in SPACES:
        shutil.copy(ROOT / "tune_spaces" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_space_is_left_out() -> None:
    assert SPACES == [
        "llama2-hh.yaml",
        "paper.yaml",
        "pythia-hh.yaml",
        "quickstart.yaml",
        "smollm2.yaml",
        "study-smollm2.yaml",
    ]


@pytest.mark.parametrize("name", SPACES)
def test_a_space_is_planned_in_a_fresh_clone_without_network(clone: Path, name: str) -> None:
    answer = call(sweep.main, name, "--dry-run")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith(f"space {Path(name).stem}: ")
    is_on_hub = name != "quickstart.yaml"
    assert ("note: the sweep reads from the hub: " in answer.stdout) == is_on_hub
    assert ("helpful_problem.json yet, and the sweep needs it" in answer.stdout) == is_on_hub
    assert {path.name for path in clone.iterdir()} == set(SPACES)


@pytest.mark.parametrize("name", SPACES)
def test_a_space_names_nothing_outside_its_folder_and_says_how_to_make_its_files(clone: Path, name: str) -> None:
    space = load_space(clone / name, only_shown=True)
    text = (clone / name).read_text()
    for criterion in space.evaluation.criteria.values():
        for path in (source.path for source in criterion.prompts if isinstance(source, PromptFile)):
            assert str(Path(path).relative_to(clone)) in PAPER_PROMPTS
            assert f"/asset/{Path(path).name}\n" in text
    sources = [*space.data.preferences.values(), space.data.demonstrations]
    assert all(source.revision for source in sources if isinstance(source, Files))


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("paper", {"dpo:helpfulness": (2e-5, 3), "kto:harmlessness": (2e-5, 3)}),
        ("llama2-hh", {"sft": (5e-7, 1), "dpo:helpfulness": (5e-6, 2), "dpo:harmlessness": (5e-6, 2)}),
        ("pythia-hh", {"sft": (2e-5, 2), "dpo:helpfulness": (1e-6, 2), "dpo:harmlessness": (5e-6, 1)}),
    ],
)
def test_stages_have_the_learning_rates_and_epochs_of_the_papers_tables(
    name: str, stages: dict[str, tuple[float, int]]
) -> None:
    training = load_space(ROOT / "tune_spaces" / f"{name}.yaml", only_shown=True).training
    for stage, expected in stages.items():
        settings = training.settings(*stage.split(":")) if ":" in stage else training.sft
        assert settings is not None
        assert (settings.learning_rate, settings.epochs) == expected
        assert (settings.lr_scheduler, settings.warmup_ratio) == ("cosine", 0.03)


@pytest.mark.parametrize(("beside_a_file", "prompts_read"), [(False, 2), (True, 3)])
def test_prompts_of_the_hub_give_the_same_ids_whether_they_are_read_or_not(
    beside_a_file: bool, prompts_read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"Question {i}?", "category": "c"} for i in range(3)]
    (tmp_path / "local.json").write_text(json.dumps(rows))

    def plan(only_shown: bool, revision: str = "a") -> Plan:
        hub = f"{{kind: files, path: some/questions, revision: {revision}}}"
        if beside_a_file:
            hub = f"[{hub}, {{kind: file, path: {tmp_path / 'local.json'}}}]"
        overrides = ["evaluation.helpfulness.prompts.path=" + str(tmp_path / "local.json")]
        overrides.append(f"evaluation.harmlessness.prompts={hub}")
        return make_plan(
            load_space(ROOT / "tune_spaces" / "smollm2.yaml", overrides, only_shown), only_shown=only_shown
        )

    shown = plan(only_shown=True)
    monkeypatch.setattr(
        prompt_sets, "prompts_of_rows", lambda _: prompt_sets.read_prompts(str(tmp_path / "local.json"), 2)
    )
    read = plan(only_shown=False)
    assert shown.steps.keys() == read.steps.keys()
    assert [len(p.prompts["harmlessness"]) for p in (shown, read)] == [0, prompts_read]
    other = plan(only_shown=True, revision="b")
    assert other.trials[0].generate["harmlessness"] != shown.trials[0].generate["harmlessness"]
    assert other.trials[0].policy != shown.trials[0].policy, "other prompts are kept out of training"
