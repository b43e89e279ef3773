"""LoRA: what is trained and stored, what stage 2 starts from, what a merge averages, and what an export loads as."""

from __future__ import annotations

import functools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sacpo import export
from sacpo.cluster import memory
from sacpo.compat.transformers import attention_of
from sacpo.data.model_cache import MODEL_CACHE
from sacpo.errors import SpaceError
from sacpo.execution import in_process
from sacpo.execution.runner import Runner
from sacpo.planning.metrics import TrainMetrics
from sacpo.planning.plan import Plan, Step
from sacpo.planning.planner import make_plan
from sacpo.planning.records import TrainEffective
from sacpo.spaces.loading import parse_space
from sacpo.spaces.merging import Ties
from sacpo.spaces.model_loading import Loading, LoRA
from sacpo.spaces.space import SyntheticModel
from sacpo.steps import model_loading, policies, reference
from sacpo.steps.adapters import Adapter, stacked
from sacpo.steps.checkpoints import LocalCheckpoints
from sacpo.steps.model import small_llama, world_tokenizer
from sacpo.steps.model_loading import effective_loading, missing_support
from sacpo.store.step_store import Store
from tests.commands import call, sweep_here, write_space
from tests.models import tiny_chat_model
from tests.spaces import small, space
from tests.stages import Expect

FIRST, SECOND = "dpo:helpfulness@2", "dpo:helpfulness@2>dpo:harmlessness@2"
LORA: dict[str, Any] = {
    "evaluation__sentinels": [],
    "training__dpo__lora": {"rank": 4, "alpha": 8},
    "training__dpo__learning_rate": 2e-2,
    "training__overrides": {"dpo:harmlessness": {"lora": {"rank": 2, "alpha": 4, "targets": ["q_proj", "up_proj"]}}},
}
IDS = torch.tensor([[1, 5, 9, 13], [1, 6, 10, 14]])


class Sweep:
    """The results of a small sweep with LoRA, carried out in this process."""

    def __init__(self, results: Path) -> None:
        self.results, self.plan, self.store = results, make_plan(space(**LORA)), Store(results / "store")

    def folder(self, label: str, role: str = "policy") -> Path:
        """The output of a trial's policy."""
        trial = next(trial for trial in self.plan.trials if trial.label == label)
        return self.store.verified_output_dir(trial.policy[role])

    @functools.cached_property
    def base(self) -> Path:
        """The SFT policy."""
        return self.folder("sft")

    def parents(self, label: str) -> dict[str, Path]:
        """The parents from which a step loads a policy."""
        return {"policy": self.folder(label), "policy_base": self.base}

    def ends(self) -> dict[str, Path]:
        """The parents of a merge of both stages."""
        ends = {"first": self.folder(FIRST), "second": self.folder(SECOND)}
        return ends | {f"{role}_base": self.base for role in ends}

    def weights(self, label: str) -> dict[str, torch.Tensor]:
        """All weights of a policy that is an adapter on the SFT policy, merged by peft."""
        base = AutoModelForCausalLM.from_pretrained(self.base)
        merged = PeftModel.from_pretrained(base, self.folder(label)).merge_and_unload()
        state: dict[str, torch.Tensor] = merged.state_dict()
        return state


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("lora")
    answer = sweep_here(write_space(small(**LORA), folder), folder / "results", "--skip-canaries")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return Sweep(folder / "results")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(input_ids=IDS).logits
    return result


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


def step_of(plan: Plan, label: str) -> Step:
    return next(step for step in plan.steps.values() if step.label == label)


def test_a_stage_stores_one_adapter_on_the_last_policy_with_all_weights(sweep: Sweep) -> None:
    adapters = [Adapter.read(sweep.folder(label)) for label in (FIRST, SECOND)]
    assert [adapter.rank for adapter in adapters] == [4, 6]
    assert all(not list(sweep.folder(label).glob("model*.safetensors")) for label in (FIRST, SECOND))
    second = adapters[1].factors
    assert len(second) == 7  # all linear modules of a block, from stage 1
    for name, (a, b) in adapters[0].factors.items():
        assert torch.equal(second[name][0][:4], a)
        assert torch.equal(second[name][1][:, :4], b)
        is_target = name.endswith(("q_proj", "up_proj"))
        assert bool(second[name][1][:, 4:].any()) == is_target  # what stage 2 trained
    assert "README.md" not in {path.name for path in sweep.folder(SECOND).iterdir()}
    assert json.loads((sweep.folder(SECOND) / "adapter_config.json").read_text())["base_model_name_or_path"] is None


def test_requested_adapters_are_the_effective_ones(sweep: Sweep) -> None:
    for label, expected in (
        (FIRST, {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": "all-linear"}),
        (SECOND, {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj", "up_proj"]}),
    ):
        record = sweep.store.record(step_of(sweep.plan, f"train {label}").id)
        assert record is not None
        assert isinstance(record.effective, TrainEffective)
        assert record.effective.settings["lora"] == expected
        assert isinstance(record.metrics, TrainMetrics)
        assert record.metrics.first_loss == pytest.approx(math.log(2), abs=1e-6)  # policy = reference at the start
        assert record.metrics.reference_max_difference == pytest.approx(0.0, abs=1e-4)
        assert record.metrics.final_loss < record.metrics.first_loss


def test_stage_2s_reference_is_the_merged_stage_1_policy(sweep: Sweep) -> None:
    stage = step_of(sweep.plan, f"train {SECOND}")
    loaded, tokenizer = policies.load_policy(sweep.parents(FIRST))
    plain = AutoModelForCausalLM.from_pretrained(sweep.base)
    plain.load_state_dict(sweep.weights(FIRST))
    sequences = [([1, 5], [9, 13, 2]), ([1, 6], [10, 2])]
    ours, theirs = (
        reference.log_probabilities(m.eval(), sequences, 2, tokenizer.pad_token_id, 16)[0] for m in (loaded, plain)
    )
    assert ours == pytest.approx(theirs, abs=1e-4)
    parents = sweep.plan.steps[stage.parents["reference"]].parents
    assert parents["policy"] == stage.parents["policy"] == step_of(sweep.plan, f"train {FIRST}").id
    assert parents["policy_base"] == stage.parents["policy_base"]


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_a_merge_averages_all_weights(sweep: Sweep, q: float) -> None:
    first, second = sweep.weights(FIRST), sweep.weights(SECOND)
    average = {name: (1 - q) * first[name] + q * second[name] for name in first}
    parents = sweep.ends()
    plain = AutoModelForCausalLM.from_pretrained(sweep.base)
    plain.load_state_dict(average)
    assert close(logits(policies.load_policy(parents, q)[0]), logits(plain))
    full = policies.full_policy(parents, q).state_dict()
    assert all(close(full[name], average[name]) for name in average)


def test_a_merge_of_adapters_on_different_bases_averages_all_weights(sweep: Sweep, tmp_path: Path) -> None:
    """As of a chain in full with a chain with LoRA."""
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(sweep.base).save_pretrained(other)
    shifted = {name: value + 0.1 for name, value in load_file(other / "model.safetensors").items()}
    save_file(shifted, other / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).write_text((sweep.base / name).read_text())
    parents = {"first": other, "second": sweep.folder(SECOND), "second_base": sweep.base}
    second, average = sweep.weights(SECOND), policies.load_policy(parents, 0.25)[0].state_dict()
    assert all(close(average[name], 0.75 * shifted[name] + 0.25 * second[name]) for name in shifted)


def test_a_merge_of_adapters_that_is_not_linear_merges_all_weights(sweep: Sweep) -> None:
    how = Ties(kind="ties", density=1)
    merged = policies.load_policy(sweep.ends() | {"origin": sweep.base}, 0.25, how)[0].state_dict()
    first, second = sweep.weights(FIRST), sweep.weights(SECOND)
    for name, origin in AutoModelForCausalLM.from_pretrained(sweep.base).state_dict().items():
        a, b = 0.75 * (first[name] - origin), 0.25 * (second[name] - origin)
        sign = torch.where(a + b >= 0, 1.0, -1.0)
        votes = 0.75 * (a.sign() == sign) + 0.25 * (b.sign() == sign)
        kept = torch.where(a.sign() == sign, a, 0) + torch.where(b.sign() == sign, b, 0)
        assert close(merged[name], origin + torch.where(votes > 0, kept / votes.clamp(min=0.25), 0))


def test_four_bit_weights_have_linear_merges_only() -> None:
    data = small(**LORA)
    data["model"] = {"kind": "pretrained", "path": "a/model", "revision": "main", "quantization": "nf4"}
    data["merges"][0]["combination"] = {"kind": "slerp"}
    with pytest.raises(SpaceError, match=r"merges.0.combination: is not linear.*give combination: {kind: linear}"):
        parse_space(data)


def test_one_base_answers_for_several_adapters(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = policies._load
    monkeypatch.setattr(policies, "_load", lambda *arguments: loaded.append(1) or load(*arguments))
    MODEL_CACHE.clear()
    alone = [logits(policies.load_policy(sweep.parents(label))[0]) for label in (FIRST, SECOND)]
    assert len(loaded) == 2
    for label, expected in ((FIRST, alone[0]), (SECOND, alone[1]), (FIRST, alone[0])):
        assert torch.equal(logits(policies.load_policy(sweep.parents(label), share_base=True)[0]), expected)
    assert len(loaded) == 3
    MODEL_CACHE.clear()


def test_an_export_is_merged_or_an_adapter_and_loads_in_plain_libraries(sweep: Sweep, tmp_path: Path) -> None:
    merge = f"p-sacpo q=0.5 ({SECOND})"
    for label, parents, q in ((SECOND, sweep.parents(SECOND), None), (merge, sweep.ends(), 0.5)):
        expected = logits(policies.load_policy(parents, q)[0])
        out, adapter = tmp_path / label / "merged", tmp_path / label / "adapter"
        out.parent.mkdir()
        assert call(export.main, str(sweep.results), label, str(out)).returncode == 0
        assert not (out / "adapter_config.json").exists()
        assert close(logits(AutoModelForCausalLM.from_pretrained(out)), expected)
        assert call(export.main, str(sweep.results), label, str(adapter), "--adapter").returncode == 0
        assert not (adapter / "config.json").exists()
        assert (adapter / "adapter_model.safetensors").stat().st_size < (out / "model.safetensors").stat().st_size
        base = AutoModelForCausalLM.from_pretrained(sweep.base)
        assert close(logits(PeftModel.from_pretrained(base, adapter)), expected)
        card = (adapter / "README.md").read_text()
        assert '`sacpo export RESULTS "sft" BASE`' in card
        assert "merged: added to the base's weights" in (out / "README.md").read_text()
    answer = call(export.main, str(sweep.results), "sft", str(tmp_path / "sft"), "--adapter")
    assert answer.returncode == 2
    assert "not all of its stages were trained with LoRA" in answer.stderr


@pytest.mark.slow
def test_an_interrupted_stage_with_lora_and_dropout_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = LORA | {
        "training__dpo__lora": {"rank": 4, "dropout": 0.2},
        "resources__checkpoint_steps": 3,
    }
    plan, keep = make_plan(space(**changes)), LocalCheckpoints.keep
    intact, resumed = (Runner(plan, Store(tmp_path / name), "t", in_process.execute) for name in ("a", "b"))
    stage = step_of(plan, f"train {SECOND}").id
    resumed.ensure(plan.steps[stage].parents["reference"])

    def keep_and_interrupt(self: LocalCheckpoints, folder: Path, update: int) -> None:
        keep(self, folder, update)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalCheckpoints, "keep", keep_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            resumed.ensure(stage)
    records = [runner.ensure(stage) for runner in (intact, resumed)]
    assert [record.metrics.resumed for record in records if isinstance(record.metrics, TrainMetrics)] == [False, True]
    adapters = [Adapter.read(runner.store.verified_output_dir(stage)) for runner in (intact, resumed)]
    for name, factors in adapters[0].factors.items():
        assert all(torch.equal(a, b) for a, b in zip(factors, adapters[1].factors[name], strict=True))


def test_stacked_adapters_add_up_where_their_modules_and_ranks_differ() -> None:
    torch.manual_seed(0)
    one = Adapter({"q": (torch.randn(2, 5), torch.randn(3, 2)), "v": (torch.randn(1, 5), torch.randn(3, 1))})
    two = Adapter({"q": (torch.randn(4, 5), torch.randn(3, 4))})
    both = stacked((one, 0.25), (two, 0.75))
    for name in ("q", "v"):
        deltas = [b @ a for a, b in (adapter.factors[name] for adapter in (one, two) if name in adapter.factors)]
        expected = sum(w * delta for w, delta in zip((0.25, 0.75), deltas, strict=False))
        assert close(both.factors[name][1] @ both.factors[name][0], torch.as_tensor(expected))
    assert both.rank == 6
    assert {tuple(tensor.shape) for name, tensor in both.state().items() if "lora_A" in name} == {(6, 5)}
    assert stacked((one, 0.0), (two, 1.0)).factors.keys() == {"q"}


def test_settings_at_their_defaults_change_no_id_and_loading_changes_only_what_loads_a_policy() -> None:
    plain = make_plan(space())
    assert all("_base" not in role for step in plain.steps.values() for role in step.parents)
    assert Loading().model_dump(exclude_defaults=True) == {}
    with_lora = make_plan(space(training__dpo__lora={}))
    shared = plain.steps.keys() & with_lora.steps.keys()
    kinds = {plain.steps[step].label for step in plain.steps.keys() - shared if plain.steps[step].kind == "train"}
    assert kinds == {f"train {FIRST}", f"train {SECOND}"}
    assert LoRA() == with_lora.steps[with_lora.trials[1].policy["policy"]].payload.settings.lora  # type: ignore[attr-defined]


@pytest.mark.slow
def test_two_zero3_workers_train_the_adapters_of_one_process(worker_group: Expect, tmp_path: Path) -> None:
    """Stage 2, which has a frozen adapter below the trained one, and checkpoints on the way."""
    from sacpo.cluster import executor

    plan = make_plan(space(**LORA | {"resources__workers": 2, "resources__checkpoint_steps": 3}))
    stage = step_of(plan, f"train {SECOND}")
    here = Runner(plan, Store(tmp_path / "here"), "t", in_process.execute)
    here.ensure(stage.parents["reference"])
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    there = Runner(plan, Store(tmp_path / "there"), "t", executor.execute)
    worker_group(stage.id)
    one, two = here.ensure(stage.id), there.ensure(stage.id)
    assert isinstance(two.effective, TrainEffective)
    assert (two.effective.zero_stage, two.effective.world_size, two.workers) == (3, 2, 2)
    assert two.files.keys() == one.files.keys()
    theirs, ours = (Adapter.read(runner.store.verified_output_dir(stage.id)) for runner in (there, here))
    for name, factors in ours.factors.items():
        for a, b in zip(factors, theirs.factors[name], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_chat_model(tmp_path_factory.mktemp("model"))


def test_a_4_bit_base_and_an_implementation_of_attention_are_loaded_as_requested(chat_model: str) -> None:
    parents = {"policy": Path(chat_model)}
    loaded = policies.load_policy(parents, loading=Loading(quantization="nf4", attn_implementation="eager"))[0]
    assert type(loaded.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    assert attention_of(loaded) == "eager"
    assert effective_loading(loaded, Loading(quantization="nf4", attn_implementation="sdpa")) == {
        "quantization": "nf4",
        "attn_implementation": "eager",
    }
    assert effective_loading(AutoModelForCausalLM.from_pretrained(chat_model), Loading())["quantization"] is None


def test_a_machine_that_cannot_load_a_model_as_requested_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_support(Loading()) == []
    monkeypatch.setattr(model_loading, "find_spec", lambda _: None)
    (problem,) = missing_support(Loading(quantization="nf4"))
    assert "pip install 'sacpo[quantization]'" in problem
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    problems = missing_support(Loading(attn_implementation="flash_attention_2"))
    assert "needs the package flash_attn" in problems[0]
    assert "needs an NVIDIA or AMD GPU; take sdpa" in problems[1]


def test_adapters_need_little_memory_and_disk(tmp_path: Path) -> None:
    settings = SyntheticModel(kind="synthetic", hidden_size=24, layers=3, heads=4)
    size = memory.model_size(settings)
    assert size is not None
    network = small_llama(settings, world_tokenizer())
    for targets in ("all-linear", ["q_proj", "mlp.down_proj"]):
        adapted = get_peft_model(network, LoraConfig(r=3, target_modules=targets))
        lora = LoRA(rank=3, targets=targets)
        assert size.adapter_parameters(lora) == adapted.get_nb_trainable_parameters()[0]
        network = adapted.unload()
    plan = make_plan(space(training__dpo__lora={}, resources__workers=2))
    step = step_of(plan, f"train {SECOND}")
    payload: Any = step.payload
    trained = size.adapter_parameters(LoRA())
    assert memory.state_bytes(step, payload, size, plan) == (size.parameters * 4 + trained * 16) / 2
    assert memory.stored_bytes(payload, size) == trained * 4
    nf4 = payload.model_copy(update={"loading": Loading(quantization="nf4")})
    assert memory.base_bytes(nf4, size) < memory.base_bytes(payload, size)
