"""A space is strict: all problems are reported at once, each with its line and the way out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from sacpo.errors import SpaceError
from sacpo.spaces.evaluation import JudgeBase, JudgeSettings, LLMJudge, RewardModelJudge
from sacpo.spaces.loading import load_judge, load_space, schema_text
from sacpo.spaces.methods import CHAIN_METHODS, METHODS
from sacpo.spaces.model_folder import folder_problem
from sacpo.spaces.space import Space, Stages
from sacpo.spaces.training import KTOTraining, Training
from tests.spaces import ROOT, quickstart

SPACES = sorted((ROOT / "tune_spaces").glob("**/*.yaml"))
HEX_COMMIT = "0123456789abcdef0123456789abcdef01234567"


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
    report = "\n".join(problems(bad, tmp_path))
    assert f"line {line['rte']}: training.dpo.learning_rte: unknown setting; did you mean learning_rate?" in report
    assert f"line {line['[1.2']}: merges.0.q.0: got 1.2; should be less than or equal to 1" in report
    assert f"line {line['smples']}: evaluation.generation.smples: unknown setting; did you mean samples?" in report
    assert "training.dpo.learning_rate: is required" in report


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
        (
            "resources={sharding: ddp, optimizer_offload: true}",
            "resources.optimizer_offload: is true, but resources.sharding is ddp",
        ),
        ("resources.workers=3", "256 is not a multiple of resources.workers (3)"),
        ("data.judge_fraction=0.5", "keeps prompts for trained judges, but this space has none"),
        ("model.heads=5", "must divide model.hidden_size"),
        ("training.sft=null", "the synthetic model starts untrained"),
        ("evaluation.helpfulness.judge.kind=golden", "judge: kind: got 'golden'; should be gold, noisy,"),
        ("chains=[]", "chains: is empty; give a chain, or a `search`"),
        ("seeds=[-1]", "seeds.0: got -1"),
        ("merges.0.chain=dpo:helpfulness", "give two or more"),
        ("training.overrides={'dpo:harmless': {epochs: 2}}", "unknown objective 'harmless'"),
        ("training.overrides={'dpo:harmlessness': {epoch: 2}}", "did you mean epochs?"),
        ("training.dpo.lora={rank: 0}", "training.dpo.lora.rank: got 0"),
        ("training.dpo.lora={target: [q_proj]}", "did you mean targets?"),
        ("training.dpo.lora={targets: [q_proj, lm_head]}", "lm_head cannot have an adapter"),
        ("training.dpo.lora={targets: q_proj}", "must be all-linear or a list of module names"),
        ("training.sft.lora={}", "dpo:helpfulness trains all weights, but the stage before it trains adapters (lora)"),
        ("training.overrides={'dpo:helpfulness': {lora: {}}}", "dpo:harmlessness trains all weights"),
        ("model.quantization=nf4", "model.quantization: unknown setting"),
        ("nonsense", "must be key=value"),
    ],
)  # fmt: skip
def test_overrides_pass_the_same_checks(text: str, tmp_path: Path, override: str, expected: str) -> None:
    assert expected in "\n".join(problems(text, tmp_path, override))


def test_a_duplicate_key_is_a_problem(text: str, tmp_path: Path) -> None:
    (problem,) = problems(text + "\nname: again\n", tmp_path)
    assert "name: is given twice" in problem


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\xff\xfe", "UTF-8"), (b"a: [", "is not YAML"), (b"- a", "must be a mapping"), (b"", "name: is required")],
)
def test_files_that_hold_no_space_are_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    with pytest.raises(SpaceError, match=expected):
        load_space(path)


def test_the_error_for_a_missing_space_lists_the_spaces_of_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_override_of_one_stage_changes_only_that_stage() -> None:
    space = load_space(
        ROOT / "tune_spaces" / "quickstart.yaml", ["training.overrides={'dpo:harmlessness': {epochs: 9}}"]
    )
    changed, kept = (space.training.settings("dpo", name) for name in ("harmlessness", "helpfulness"))
    assert changed is not None
    assert kept is not None
    assert (changed.epochs, kept.epochs) == (9, 3)
    assert changed.learning_rate == kept.learning_rate


# ------------------------------------------------------------------------------------------------------- local inputs


def test_a_missing_input_is_reported_with_its_line_and_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "smollm2.yaml"
    shutil.copy(ROOT / "tune_spaces" / "smollm2.yaml", path)
    with pytest.raises(SpaceError) as caught:
        load_space(path, ["data.demonstrations.path=rows.jsonl", "data.demonstrations.revision=null"])
    demonstrations, *prompts = caught.value.problems
    assert demonstrations.startswith("--set: data.demonstrations.path: there is no 'rows.jsonl'")
    assert "or for a hub id give its `revision`" in demonstrations
    line = next(i for i, row in enumerate(path.read_text().splitlines(), 1) if "helpful_problem.json}" in row)
    assert prompts[0].startswith(f"line {line}: evaluation.helpfulness.prompts.path: there is no 'data/helpful_problem")
    assert prompts[1].endswith(f"in {tmp_path.resolve()}; correct the path")


def test_conflicts_and_missing_inputs_are_reported_together(text: str, tmp_path: Path) -> None:
    found = problems(text, tmp_path, "model={kind: pretrained, path: absent}")
    assert any("model.path: there is no 'absent'" in problem for problem in found)
    assert any("a pretrained model needs files" in problem for problem in found)


def test_mappings_are_merged_and_their_own_keys_win(text: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    first, second = "{<<: &a {rows: 8, seed: 1, kind: synthetic}, seed: 2}", "{<<: [{rows: 9}, *a]}"
    path.write_text(text.replace("{kind: synthetic, rows: 16384, garbled_fraction: 0.12}", first, 1).replace(
        "{kind: synthetic, rows: 16384, garbled_fraction: 0.12}", second, 1))  # fmt: skip
    preferences = load_space(path).model_dump()["data"]["preferences"]
    assert [(p["rows"], p["seed"]) for p in preferences.values()] == [(8, 2), (9, 1)]
    refused = problems(text.replace("merges:", "merges:\n  - {<<: 3}"), tmp_path)
    assert any("merges.0: << takes mappings" in problem for problem in refused)


def test_a_hub_id_needs_a_revision_and_stays_as_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "prompts.json").touch()
    files = "{kind: files, path: rows.jsonl, format: pairs}"
    overrides = [
        "model={kind: pretrained, path: some/model}",
        f"data.demonstrations={files}",
        f"data.preferences={{helpfulness: {files}, harmlessness: {files}}}",
        "evaluation.helpfulness={prompts: {kind: file, path: prompts.json}, judge: {kind: llm, model: m}}",
        "evaluation.harmlessness={prompts: {kind: file, path: prompts.json}, judge: {kind: llm, model: m}}",
    ]
    (problem,) = problems(text, tmp_path, *overrides)
    assert problem.startswith("--set: model.path: there is no 'some/model'")
    assert "give its `revision`" in problem
    space = load_space(tmp_path / "space.yaml", [*overrides, f"model.revision={HEX_COMMIT}"])
    assert space.model_dump()["model"]["path"] == "some/model"
    assert space.model_dump()["data"]["demonstrations"]["path"] == str((tmp_path / "rows.jsonl").resolve())


def test_a_folder_that_is_no_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    names = ("config.json", "m.gguf", "peft/adapter_config.json", "out/step-9/config.json", "raw/a.gguf", "none/x")
    for path in (tmp_path / name for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for inside, gguf_file, problem in (
        ("", None, ""),
        ("", "m.gguf", ""),
        ("", "n.gguf", r"no gguf_file n\.gguf in .*, which has m\.gguf"),
        ("none", "n.gguf", "which has no GGUF file"),
        ("m.gguf", None, r"is a file.*gguf_file: m\.gguf"),
        ("config.json", None, "is a file.*save_pretrained"),
        ("raw", None, r"set gguf_file: a\.gguf"),
        ("peft", None, "adapter of peft.*merge_and_unload"),
        ("out", None, "such as step-9 inside it"),
        ("none", None, "no config.json; .*tokenizer\\)$"),
    ):
        text = folder_problem(tmp_path / inside, gguf_file)
        assert bool(text) == bool(problem)
        assert re.search(problem, text)
    path = tmp_path / "judge.yaml"
    for folder in ("out", "out/step-9"):
        path.write_text(f"kind: reward_model\npath: {folder}\nhigher_is: better\n")
        if folder == "out/step-9":
            load_judge(path)
            continue
        with pytest.raises(SpaceError, match=r"line 2: path: .*has no config.json"):
            load_judge(path)


def test_a_judge_is_read_from_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text("kind: llm\nmodel: m\nrubric: rubric.txt\n")
    with pytest.raises(SpaceError, match=r"line 3: rubric: there is no 'rubric.txt' in .*; correct the path$"):
        load_judge(path)
    (tmp_path / "rubric.txt").touch()
    judge = load_judge(path, ["calls.concurrency=4"])
    assert isinstance(judge, LLMJudge)
    assert judge.rubric == str((tmp_path / "rubric.txt").resolve())
    assert judge.calls.concurrency == 4
    path.write_text("kind: llm\nmodell: m\ncalls: {timout: 3}\n")
    with pytest.raises(SpaceError) as caught:
        load_judge(path)
    report = "\n".join(caught.value.problems)
    assert "line 2: modell: unknown setting; did you mean model?" in report
    assert "model: is required" in report
    assert "line 3: calls.timout: unknown setting; did you mean timeout?" in report
    path.write_text("kind: reward_model\npath: some/model\nrevision: abc\nhigher_is: better\n")
    judge = load_judge(path)
    assert isinstance(judge, RewardModelJudge)
    assert judge.path == "some/model"


# ---------------------------------------------------------------------------------------------- the models themselves


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation, and the models of their fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for part in get_args(annotation):
        yield from models(part)


def test_every_setting_has_a_description() -> None:
    settings = {(model, name) for model in models(Space) for name in model.model_fields}
    assert len(settings) > 140
    missing = [f"{m.__name__}.{name}" for m, name in settings if not (m.model_fields[name].description or "").strip()]
    assert not missing
    assert not [model.__name__ for model, _ in settings if not model.__doc__]


def test_settings_that_are_not_hashed_exist() -> None:
    for model in models(Space):
        assert model.not_hashed <= set(model.model_fields), model


def test_the_table_of_methods_and_the_settings_of_a_space_agree() -> None:
    assert CHAIN_METHODS == ("dpo", "kto")
    fields = set(Stages.model_fields) - {"overrides"}
    assert fields == set(METHODS) - {"reward"}, "reward models are trained by the settings of their judge"
    for name, method in METHODS.items():
        assert method.name == name
        assert issubclass(method.settings, Training)
        if name in fields:
            assert method.settings in get_args(Stages.model_fields[name].annotation)
    assert {name for name, method in METHODS.items() if method.uses_reference} == set(CHAIN_METHODS)


def test_the_batch_of_ktos_kl_term_is_the_whole_batch_unless_it_is_given() -> None:
    settings = KTOTraining(learning_rate=1e-3, batch_size=32)
    assert settings.kl_batch_size is None
    assert settings.resolved() == KTOTraining(learning_rate=1e-3, batch_size=32, kl_batch_size=32)
    given = KTOTraining(learning_rate=1e-3, batch_size=32, kl_batch_size=8)
    assert given.resolved() == given


def test_facts_about_judges() -> None:
    union, _ = get_args(JudgeSettings)
    facts = {
        judge.model_fields["kind"].annotation.__args__[0]: (
            judge.synthetic_only,
            judge.loads_model,
            judge.calls_endpoint,
            judge.is_trained,
        )
        for judge in get_args(union)
    }
    assert all(issubclass(judge, JudgeBase) for judge in get_args(union))
    assert facts == {
        "gold": (True, False, False, False),
        "noisy": (True, False, False, False),
        "reward_model": (False, True, False, False),
        "trained_reward_model": (False, True, False, True),
        "llm": (False, False, True, False),
        "annotations": (False, False, False, False),
    }


def test_synthetic_judges_and_data_go_with_the_synthetic_model_only(text: str, tmp_path: Path) -> None:
    report = "\n".join(problems(text, tmp_path, f"model={{kind: pretrained, path: m, revision: {HEX_COMMIT}}}"))
    for setting in ("data.preferences.helpfulness", "data.demonstrations", "evaluation.harmlessness.prompts"):
        assert f"{setting}: is synthetic, but model.kind is pretrained" in report
    assert "evaluation.helpfulness.judge: gold judges only the synthetic world; use llm" in report


def test_the_schema_for_editors_is_current_and_fits_the_spaces() -> None:
    stored = (ROOT / "tune_spaces" / "schema.json").read_text()
    assert stored == schema_text(), "tune_spaces/schema.json is outdated; run make schema"
    jsonschema.validate(quickstart(), json.loads(stored))
    wrong = quickstart() | {"modle": {}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(stored))
    assert all(yaml.safe_load(path.read_text()) for path in SPACES)


def test_settings_of_loading_that_cannot_work_are_conflicts(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": "d"}]))
    (tmp_path / "config.json").touch()
    data = quickstart()
    data["model"] = {
        "kind": "pretrained",
        "path": ".",
        "quantization": "nf4",
        "attn_implementation": "flash_attention_2",
    }
    rows = {"kind": "files", "path": source.name, "format": "pairs"}
    data["data"] = {"preferences": {"helpfulness": rows, "harmlessness": rows}}
    data["training"].pop("sft")
    for criterion in ("helpfulness", "harmlessness"):
        prompts = {"kind": "file", "path": "prompts.json"}
        judge = {"kind": "reward_model", "path": ".", "higher_is": "better"}
        data["evaluation"][criterion] = {"prompts": prompts, "judge": judge}
    text = yaml.safe_dump(data)
    report = "\n".join(problems(text, tmp_path))
    assert "training.dpo trains all weights, and 4-bit weights are frozen; give training.dpo.lora" in report
    assert "model.quantization: is nf4, but resources.sharding is zero3" in report
    assert "model.attn_implementation: flash_attention_2 needs a GPU" in report
    fixed = ["training.dpo.lora={}", "resources.sharding=ddp", "model.attn_implementation=sdpa"]
    loading = load_space(tmp_path / "space.yaml", fixed).model.loading
    assert (loading.quantization, loading.attn_implementation) == ("nf4", "sdpa")
