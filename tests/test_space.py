"""A space is strict: every problem at once, each with its line and the way out."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from sacpo.errors import SpaceError
from sacpo.spaces.loading import load_space, schema_text
from tests.spaces import ROOT, SHARED, quickstart

SPACES = sorted((ROOT / "tune_spaces").glob("**/*.yaml"))
PAPER_PROMPTS = [
    f"evaluation.{name}.prompts.path={SHARED / 'data' / f'prompts_{short}.json'}"
    for name, short in (("helpfulness", "helpful"), ("harmlessness", "harmless"))
]


def problems(text: str, tmp_path: Path, *overrides: str) -> list[str]:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError) as caught:
        load_space(path, list(overrides))
    return caught.value.problems


@pytest.fixture
def text() -> str:
    return (ROOT / "tune_spaces" / "quickstart.yaml").read_text()


def test_every_problem_is_reported_at_once_with_line_and_nearest_key(text: str, tmp_path: Path) -> None:
    bad = (
        text.replace("dpo: {learning_rate", "dpo: {learning_rte")
        .replace("q: [0.25", "q: [1.2")
        .replace("samples", "smples")
    )
    line = {
        key: next(i for i, row in enumerate(bad.splitlines(), 1) if key in row) for key in ("rte", "[1.2", "smples")
    }
    found = "\n".join(problems(bad, tmp_path))
    assert f"line {line['rte']}: training.dpo.learning_rte: unknown setting; did you mean learning_rate?" in found
    assert f"line {line['[1.2']}: merges.0.q.0: got 1.2; should be less than or equal to 1" in found
    assert f"line {line['smples']}: evaluation.generation.smples: unknown setting; did you mean samples?" in found
    assert "training.dpo.learning_rate: is required" in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("chains.0.beta=0", "chains.0.beta: got 0; should be greater than 0"),
        ("chains.0.beta=-1", "chains.0.beta: got -1; should be greater than 0"),
        ("chains.0.beta=.nan", "should be a finite number"),
        ("chains.0.beta=high", "chains.0.beta: got 'high'; should be a valid number"),
        ("chains.0.chain=dpo:helpfulnes", "data.preferences has harmlessness, helpfulness; did you mean helpfulness?"),
        ("chains.0.chain=ppo:helpfulness", "METHOD one of dpo, kto"),
        ("chains.0.chain=kto:helpfulness>kto:harmlessness", "training.kto is absent"),
        ("chains.0.chain=dpo:helpfulness", "has 0 stage(s) after the first, but values for 1 are given"),
        ("resources.worker=2", "--set: resources.worker: unknown setting; did you mean workers?"),
        ("resources.workers=3", "256 is not a multiple of resources.workers (3)"),
        ("data.judge_fraction=0.5", "keeps prompts for a trained judge, and there is none"),
        ("model.heads=5", "must divide model.hidden_size"),
        ("training.sft=null", "the synthetic model starts untrained"),
        ("evaluation.helpfulness.judge.kind=golden", "'gold'"),
        ("chains=[]", "chains: List should have at least 1 item"),
        ("seeds=[-1]", "seeds.0: got -1"),
        ("merges.0.chain=dpo:helpfulness", "give two or more"),
        ("training.overrides={'dpo:harmless': {epochs: 2}}", "unknown objective 'harmless'"),
        ("training.overrides={'dpo:harmlessness': {epoch: 2}}", "did you mean epochs?"),
        ("nonsense", "must be key=value"),
    ],
)  # fmt: skip
def test_overrides_pass_the_same_checks(text: str, tmp_path: Path, override: str, expected: str) -> None:
    assert expected in "\n".join(problems(text, tmp_path, override))


def test_a_key_given_twice_is_a_problem(text: str, tmp_path: Path) -> None:
    (problem,) = problems(text + "\nname: again\n", tmp_path)
    assert "name: is given twice" in problem


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\xff\xfe", "UTF-8"), (b"a: [", "is not YAML"), (b"- a", "must be a mapping"), (b"", "name: is required")],
)
def test_what_is_no_space_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    with pytest.raises(SpaceError, match=expected):
        load_space(path)


def test_a_missing_file_lists_the_spaces_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SpaceError, match="quickstart"):
        load_space(Path("tune_spaces/quikstart.yaml"))


@pytest.mark.parametrize("written", ["1e-5", "1E-5", "1.0e-5", "0.00001", ".1e-4"])
def test_numbers_are_those_of_yaml_1_2(text: str, tmp_path: Path, written: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    space = load_space(path, [f"training.dpo.learning_rate={written}"])
    assert space.training.dpo is not None
    assert space.training.dpo.learning_rate == pytest.approx(1e-5)


def test_an_override_of_one_stage_changes_that_stage_alone() -> None:
    space = load_space(
        ROOT / "tune_spaces" / "quickstart.yaml", ["training.overrides={'dpo:harmlessness': {epochs: 9}}"]
    )
    changed, kept = (space.training.settings("dpo", name) for name in ("harmlessness", "helpfulness"))
    assert changed is not None
    assert kept is not None
    assert (changed.epochs, kept.epochs) == (9, 3)
    assert changed.learning_rate == kept.learning_rate


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_space_loads(path: Path) -> None:
    if not SHARED.is_dir() and path.stem != "quickstart":
        pytest.skip(f"{path.stem} reads files of {SHARED}, which is not there")
    assert load_space(path, PAPER_PROMPTS if path.stem == "paper" else []).name == path.stem


def test_no_space_is_left_out() -> None:
    assert {path.stem for path in SPACES} == {"quickstart", "paper", "smollm2"}


def test_the_schema_for_editors_is_current_and_fits_the_spaces() -> None:
    stored = (ROOT / "tune_spaces" / "schema.json").read_text()
    assert stored == schema_text(), "write it anew: make schema"
    jsonschema.validate(quickstart(), json.loads(stored))
    wrong = quickstart() | {"modle": {}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(stored))
    assert all(yaml.safe_load(path.read_text()) for path in SPACES)
