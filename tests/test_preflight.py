"""Sweeps that are refused before they start, by the estimates and by the reports of the nodes."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from sacpo.cluster import memory, preflight
from sacpo.errors import ClusterError, SacpoError
from sacpo.judges.chat_client import problem
from sacpo.planning.payloads import AnyTrainPayload, DPOPayload
from sacpo.planning.planner import make_plan
from sacpo.spaces.space import PretrainedModel, Resources, SyntheticModel
from sacpo.steps.model import small_llama, world_tokenizer
from sacpo.store.step_store import Store
from tests.servers import Say, scripted
from tests.spaces import space

LLAMA_7B = memory.ModelSize(parameters=6_738_415_616, layers=32, width=4096, vocabulary=32_000)


class UnsharedStore(Store):
    """A store on a path that is not a shared mount: another process finds another folder there."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (f"{self.uri}-of-that-node",)


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_is_refused_where_a_node_has_other_versions_or_another_store(tmp_path: Path) -> None:
    versions = {name: metadata.version(name) for name in ("ray", "torch")}
    plan = make_plan(space())
    assert preflight.check_cluster(plan, Store(tmp_path / "store"), versions, ()) == []
    assert not list((tmp_path / "store").iterdir())
    with pytest.raises(ClusterError, match=r"\d: ray is .*, but 2\.59\.0 where the sweep was started"):
        preflight.check_cluster(plan, Store(tmp_path / "store"), versions | {"ray": "2.59.0"}, ())
    with pytest.raises(
        ClusterError, match="is another one there; give a path that every node mounts, or a bucket's URI"
    ):
        preflight.check_cluster(plan, UnsharedStore(tmp_path / "store"), versions, ())


def test_the_sizes_of_a_model_are_known_from_its_configuration_alone(tmp_path: Path) -> None:
    synthetic = space(model__hidden_size=24, model__layers=3).model
    assert isinstance(synthetic, SyntheticModel)
    model = small_llama(synthetic, world_tokenizer())
    expected = memory.ModelSize(model.num_parameters(), 3, 24, model.config.vocab_size)
    size = memory.model_size(synthetic)
    assert size is not None
    assert replace(size, linear=()) == expected
    model.config.save_pretrained(tmp_path)
    assert memory.model_size(PretrainedModel(kind="pretrained", path=str(tmp_path))) == size
    assert memory.model_size(PretrainedModel(kind="pretrained", path="nobody/nothing", revision="abc")) is None
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SacpoError, match="no configuration of a causal language model can be read"):
        memory.model_size(PretrainedModel(kind="pretrained", path=str(tmp_path)))


def test_a_training_that_can_never_fit_is_refused_with_the_setting_that_makes_it_fit(tmp_path: Path) -> None:
    plan = make_plan(space(model__dtype="bfloat16", resources__workers=1, resources__gpus_per_worker=1))
    with pytest.raises(SacpoError, match=r"take 107\.8 GB on each of 1 workers, and a card has 80\.0 GB.*workers high"):
        memory.check_fits(plan, LLAMA_7B, (), 80e9, "a card", None)
    halved = make_plan(space(model__dtype="bfloat16", resources__workers=2, resources__gpus_per_worker=1))
    assert memory.check_fits(halved, LLAMA_7B, (), 80e9, "a card", None) == []
    assert memory.check_fits(plan, LLAMA_7B, set(plan.steps), 80e9, "a card", None) == [], "nothing remains to train"
    copied = make_plan(space(model__dtype="bfloat16", resources__workers=2, resources__reference="live"))
    stage = next(step for step in copied.steps.values() if "reference" in step.parents)
    assert isinstance(stage.payload, AnyTrainPayload)
    assert memory.state_bytes(stage, stage.payload, LLAMA_7B, copied) == LLAMA_7B.parameters * (16 + 2) / 2
    ddp = make_plan(space(model__dtype="bfloat16", resources__reference="live", resources__sharding="ddp"))
    assert memory.state_bytes(ddp.steps[stage.id], stage.payload, LLAMA_7B, ddp) == LLAMA_7B.parameters * (16 + 4)
    replicated = make_plan(space(resources__workers=2, resources__sharding="ddp"))
    with pytest.raises(SacpoError, match="sharding: zero3"):
        memory.check_fits(replicated, LLAMA_7B, (), 80e9, "a card", None)


def test_offloaded_states_need_the_nodes_memory_instead_of_the_gpus() -> None:
    settings = {"model__dtype": "bfloat16", "resources__workers": 2, "resources__gpus_per_worker": 1}
    plan = make_plan(space(resources__optimizer_offload=True, **settings))
    stage = next(step for step in plan.steps.values() if isinstance(step.payload, DPOPayload))
    assert isinstance(stage.payload, DPOPayload)
    assert memory.state_bytes(stage, stage.payload, LLAMA_7B, plan) == LLAMA_7B.parameters * 2 / 2
    assert memory.check_fits(plan, LLAMA_7B, (), 24e9, "a card", None) == []
    with pytest.raises(SacpoError, match=r"a card has 24.0 GB.*optimizer_offload: true"):
        memory.check_fits(make_plan(space(**settings)), LLAMA_7B, (), 24e9, "a card", None)
    memory.check_offload_fits(plan, LLAMA_7B, (), 60e9)
    with pytest.raises(SacpoError, match=r"keeps 53\.9 GB .* the largest node has 50\.0 GB for one"):
        memory.check_offload_fits(plan, LLAMA_7B, (), 50e9)


def test_long_texts_that_may_not_fit_give_a_note_and_a_disk_that_is_too_small_is_refused(tmp_path: Path) -> None:
    long = {"model__dtype": "bfloat16", "data__max_length": 4096, "resources__per_device_batch": 16}
    plan = make_plan(space(resources__workers=2, **long))
    (note,) = memory.check_fits(plan, LLAMA_7B, (), 80e9, "a card", None)
    assert "may run out of memory" in note
    assert "per_device_batch" in note
    large, small = (
        make_plan(space(resources__workers=2, training__dpo__batch_size=8, **long | {"resources__per_device_batch": n}))
        for n in (16, 4)
    )
    payload = next(step.payload for step in large.steps.values() if isinstance(step.payload, DPOPayload))
    bytes_of_large, bytes_of_small = (memory.activation_bytes(payload, LLAMA_7B, plan) for plan in (large, small))
    assert bytes_of_large == bytes_of_small, "a worker's share of the batch is 4 either way"
    enormous = memory.ModelSize(10**15, 1, 1, 1)
    with pytest.raises(SacpoError, match="give another location with --store"):
        memory.check_fits(plan, enormous, (), None, "a card", tmp_path / "not" / "yet")


def test_workers_share_a_nodes_memory_if_other_nodes_have_no_room_for_them() -> None:
    nodes = [{"Resources": {"CPU": 4.0, "memory": 8e9}}, {"Resources": {"CPU": 1.0, "memory": 3e9}}, {"Resources": {}}]
    assert preflight.cpu_memory(nodes, Resources(workers=1)) == 8e9
    assert preflight.cpu_memory(nodes, Resources(workers=3)) == 4e9, "one of them fits the other node"
    assert preflight.cpu_memory(nodes[2:], Resources(workers=3)) is None


def test_an_endpoint_that_cannot_be_used_is_known_before_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    reason = problem("http://127.0.0.1:1/v1", None)
    assert reason is not None
    assert "http://127.0.0.1:1/v1 cannot be reached" in reason
    with scripted(lambda *_: Say("")) as server:
        for server.models in (200, 404, 500):
            assert problem(server.base_url, "JUDGE_KEY") is None, "its answer to a call is the canaries' concern"
        server.models = 401
        reason = problem(server.base_url, "JUDGE_KEY")
    assert reason == f"the endpoint {server.base_url} refuses the key from JUDGE_KEY (HTTP 401)"
    assert "JUDGE_KEY" not in str(problem("http://127.0.0.1:1/v1", "JUDGE_KEY"))
    monkeypatch.delenv("JUDGE_KEY")
    assert "environment variable JUDGE_KEY, which is not set" in str(problem("http://127.0.0.1:1/v1", "JUDGE_KEY"))
