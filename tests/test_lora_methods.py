"""LoRA with each method and with a live reference, trained in this process."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sacpo.execution import in_process
from sacpo.execution.runner import Runner
from sacpo.planning.graph import with_bases
from sacpo.planning.planner import make_plan
from sacpo.spaces.model_loading import LoRA
from sacpo.steps import policies
from sacpo.steps.adapters import Adapter
from sacpo.store.step_store import Store
from tests.spaces import space
from tests.stages import Stage

CHAIN = "kto:helpfulness>dpo:harmlessness"
SETTINGS: dict[str, Any] = {
    "chains": [{"chain": CHAIN, "beta": 2.0, "beta_over_lambda": [1.0]}],
    "merges": [],
    "evaluation__sentinels": [],
    "training__sft__lora": {"rank": 3},
    "training__dpo__lora": {"rank": 2},
    "training__kto": {"learning_rate": 5e-3, "batch_size": 64, "epochs": 1, "kl_batch_size": 64, "lora": {"rank": 4}},
}
STAGES = ("sft", "kto:helpfulness@2", "kto:helpfulness@2>dpo:harmlessness@1")
RANKS, STACKED_RANKS = (3, 4, 2), (3, 7, 9)


class Chain:
    """SFT, KTO and DPO with LoRA, one after the other, with one kind of reference."""

    def __init__(self, folder: Path, reference: str) -> None:
        self.plan, self.store = make_plan(space(**SETTINGS, resources__reference=reference)), Store(folder)
        self.runner = Runner(self.plan, self.store, "t", in_process.execute)

    def policy(self, label: str) -> str:
        return next(trial.policy["policy"] for trial in self.plan.trials if trial.label == label)

    @functools.cache  # noqa: B019 (a few objects, for one test session)
    def stage(self, label: str) -> Stage:
        step = self.policy(label)
        self.runner.ensure(step)
        record = self.store.record(step)  # as later steps read it
        assert record is not None
        return Stage(record, self.store.verified_output_dir(step), self.store)


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chain]:
    return {kind: Chain(tmp_path_factory.mktemp(kind), kind) for kind in ("precomputed", "live")}


@pytest.mark.parametrize(("label", "rank", "stacked"), list(zip(STAGES, RANKS, STACKED_RANKS, strict=True)))
def test_each_method_trains_an_adapter_on_those_of_the_stages_before(
    chains: dict[str, Chain], label: str, rank: int, stacked: int
) -> None:
    stage = chains["precomputed"].stage(label)
    assert stage.effective.settings["lora"] == LoRA(rank=rank).model_dump()
    adapter = Adapter.read(stage.output)
    assert adapter.rank == stacked
    assert all(b[:, -rank:].any() for _, b in adapter.factors.values())  # the trained part
    assert not list(stage.output.glob("model*.safetensors"))
    if "dpo" in label.rpartition(">")[2]:
        assert stage.losses()[0] == pytest.approx(math.log(2), abs=1e-6)  # policy = reference at the start


@pytest.mark.parametrize("label", STAGES[1:])
def test_a_live_reference_is_the_policy_with_the_adapters_of_the_stages_before(
    chains: dict[str, Chain], label: str
) -> None:
    precomputed, live = (chains[kind].stage(label) for kind in ("precomputed", "live"))
    assert precomputed.record.step_id == live.record.step_id
    assert live.metrics.reference_max_difference is None
    assert precomputed.metrics.reference_max_difference == pytest.approx(0.0, abs=1e-4)
    assert precomputed.losses() == pytest.approx(live.losses(), rel=1e-4)


def test_a_policy_whose_stages_are_all_adapters_is_loaded_as_peft_loads_it(chains: dict[str, Chain]) -> None:
    chain = chains["precomputed"]
    step, ids = chain.policy(STAGES[-1]), torch.tensor([[1, 5, 9, 13]])
    output = chain.stage(STAGES[-1]).output
    roles = with_bases(chain.plan.steps, {"policy": step})
    parents = {role: chain.store.verified_output_dir(parent) for role, parent in roles.items()}
    base = AutoModelForCausalLM.from_pretrained(parents["policy_base"])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, output)(input_ids=ids).logits
        assert torch.allclose(policies.load_policy(parents)[0](input_ids=ids).logits, expected, atol=1e-5)
    assert json.loads((output / "adapter_config.json").read_text())["r"] == STACKED_RANKS[-1]
