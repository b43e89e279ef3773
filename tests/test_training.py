"""Training stages in the calling process, with one worker: losses, effective settings, references, divergence, resume.

`tests.test_worker_groups` has the tests of Ray Train's worker groups and of ZeRO-3.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sacpo.errors import StepError
from sacpo.execution import in_process
from sacpo.planning.metrics import ReferenceMetrics
from sacpo.spaces.training import DPOTraining
from sacpo.steps.checkpoints import LocalCheckpoints
from sacpo.steps.train import class_weights
from tests.stages import TrainStage, change_reference, make_base, train_in, trained_once


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), in_process.execute)


@pytest.fixture(scope="module")
def train(base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainStage:
    return trained_once(base, in_process.execute, tmp_path_factory)


def test_a_dpo_stage_starts_at_its_reference_and_changes_every_weight(train: TrainStage) -> None:
    stage = train(training__dpo__adam_epsilon=1e-6)
    assert stage.losses()[0] == pytest.approx(math.log(2), abs=1e-6)  # policy = reference before the first update
    assert stage.losses()[-1] < stage.losses()[0]
    parent = stage.store.verified_output_dir(stage.record.parents["policy"])
    before = load_file(parent / "model.safetensors")
    assert all(not torch.equal(value, before[name]) for name, value in stage.weights().items())
    assert not list(stage.output.glob("*.bin"))
    assert {path.suffix for path in stage.output.iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_a_bfloat16_policy_keeps_updates_that_are_smaller_than_its_rounding(train: TrainStage) -> None:
    """A gain of a norm is about 1, where bfloat16 has steps of 1/256: single updates of 1e-3 would all be lost."""
    stage = train(model__dtype="bfloat16")
    parent = load_file(stage.store.verified_output_dir(stage.record.parents["policy"]) / "model.safetensors")
    gains = {name: value for name, value in stage.weights().items() if "norm" in name}
    assert {value.dtype for value in stage.weights().values()} == {torch.bfloat16}
    assert any(not torch.equal(value, parent[name]) for name, value in gains.items())
    assert stage.effective.dtype == "torch.bfloat16"


def test_a_training_whose_changes_bfloat16_rounds_away_says_so(train: TrainStage) -> None:
    loud, quiet = (
        train(model__dtype="bfloat16").metrics,
        train(model__dtype="bfloat16", training__dpo__learning_rate=1e-7).metrics,
    )
    assert loud.changed_weights is not None
    assert quiet.changed_weights is not None
    assert loud.changed_weights > 0.5 > 0.25 > quiet.changed_weights
    assert not any("of the weights changed" in warning for warning in loud.warnings)
    assert any(warning.startswith("only ") and "bfloat16 rounds" in warning for warning in quiet.warnings)
    exact = train(training__dpo__learning_rate=1e-7).metrics
    assert exact.changed_weights is not None
    assert exact.changed_weights > quiet.changed_weights
    assert not any("bfloat16" in warning for warning in exact.warnings)


def test_a_stage_has_the_settings_that_were_requested(train: TrainStage) -> None:
    stage = train(training__dpo__adam_epsilon=1e-6)
    settings = DPOTraining(learning_rate=1e-3, epochs=1, batch_size=64, adam_epsilon=1e-6).model_dump()
    effective = stage.effective.settings
    assert {key: effective[key] for key in settings if key in effective} == {
        key: value for key, value in settings.items() if key in effective
    }
    assert len(settings.keys() & effective.keys()) > 6
    assert effective["kl_parameter"] == 2.0
    assert (stage.effective.world_size, stage.effective.accumulation, stage.effective.zero_stage) == (1, 1, 0)
    assert stage.effective.per_device_batch * stage.effective.accumulation == 64
    assert list(stage.metrics.start_seconds) == ["trainer", "engine"]
    start = stage.record.first_update_at - stage.record.started_at
    assert sum(stage.metrics.start_seconds.values()) == pytest.approx(start, abs=0.05)


def test_accumulation_changes_no_loss(train: TrainStage) -> None:
    whole, parts = train(), train(resources__per_device_batch=16)
    assert (whole.effective.accumulation, parts.effective.accumulation) == (1, 4)
    assert whole.record.step_id == parts.record.step_id
    assert parts.losses() == pytest.approx(whole.losses(), rel=1e-3)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_packing_changes_no_loss(method: str, train: TrainStage) -> None:
    packed, padded = train(method), train(method, resources__packing=False)
    assert packed.record.step_id == padded.record.step_id
    assert packed.losses() == pytest.approx(padded.losses(), rel=1e-4)
    assert packed.metrics.throughput is not None
    assert padded.metrics.throughput is not None
    assert packed.metrics.throughput.padded_because is None
    assert padded.metrics.throughput.padded_because == "resources.packing is false"
    assert packed.metrics.throughput.tokens == padded.metrics.throughput.tokens
    assert padded.metrics.throughput.computed_tokens == padded.metrics.throughput.tokens


def test_kto_learns_and_its_seed_orders_the_data(train: TrainStage) -> None:
    stage, other_seed = train("kto"), train("kto", seed=1)
    assert stage.metrics.updates == len(stage.losses())
    assert stage.losses()[-1] < stage.losses()[0]
    assert other_seed.losses() != stage.losses()


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_precomputed_reference_gives_the_losses_of_a_live_one(method: str, train: TrainStage) -> None:
    precomputed, live = train(method), train(method, resources__reference="live")
    assert precomputed.record.step_id == live.record.step_id
    assert precomputed.losses() == pytest.approx(live.losses(), rel=1e-4)
    assert precomputed.metrics.reference_max_difference is not None
    assert precomputed.metrics.reference_max_difference < 1e-3
    assert live.metrics.reference_max_difference is None
    reference = precomputed.store.record(precomputed.record.parents["reference"])
    assert reference is not None
    assert isinstance(reference.metrics, ReferenceMetrics)
    assert reference.metrics.examples == precomputed.metrics.examples_per_epoch


def test_throughput_follows_from_updates_tokens_and_seconds(train: TrainStage) -> None:
    metrics = train().metrics
    throughput = metrics.throughput
    assert throughput is not None
    examples_per_second = metrics.updates * 64 / throughput.training_seconds
    assert throughput.examples_per_second == pytest.approx(examples_per_second)
    assert throughput.computed_tokens is not None
    assert throughput.computed_tokens < throughput.tokens  # a pair's prompt is computed once
    flops_per_second = 6 * throughput.parameters * throughput.computed_tokens / throughput.training_seconds
    assert throughput.flops_per_second == pytest.approx(flops_per_second)
    assert 0 <= throughput.padding_fraction < 1


def test_a_reference_of_another_policy_is_refused(base: Path, tmp_path: Path) -> None:
    runner, step = change_reference(base, tmp_path, in_process.execute, lambda values: [v - 50.0 for v in values])
    with pytest.raises(StepError, match="belong to another policy or other data"):
        runner.ensure(step)


def test_a_loss_that_is_not_finite_fails_the_stage_at_its_update(base: Path, tmp_path: Path) -> None:
    """The reference of one example is NaN, in whichever update the example comes."""
    runner, step = change_reference(base, tmp_path, in_process.execute, lambda values: [*values[:-1], math.nan])
    with pytest.raises(StepError, match=r"diverged at update [2-8] of 8: the loss is nan"):
        runner.ensure(step)


def test_a_diverged_stage_fails_with_its_reason(train: TrainStage) -> None:
    with pytest.raises(StepError, match=r"diverged at update \d+ of \d+: the loss is .*try a smaller"):
        train(training__dpo__learning_rate=0.99, training__dpo__max_grad_norm=1e9)


def test_class_weights_make_both_classes_weigh_the_same() -> None:
    desirable, undesirable = class_weights([True] * 3 + [False] * 9)
    assert (desirable * 3, undesirable * 9) == (9, 9)
    with pytest.raises(StepError, match="4 desirable and 0 undesirable"):
        class_weights([True] * 4)


def test_an_interrupted_stage_resumes_from_its_checkpoint(
    train: TrainStage, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"resources__checkpoint_steps": 8, "training__dpo__epochs": 3}
    keep = LocalCheckpoints.keep

    def keep_and_interrupt(self: LocalCheckpoints, folder: Path, update: int) -> None:
        keep(self, folder, update)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalCheckpoints, "keep", keep_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_in(tmp_path, base, in_process.execute, **changes)
    resumed, intact = train_in(tmp_path, base, in_process.execute, **changes), train(**changes)
    assert resumed.metrics.resumed
    assert not intact.metrics.resumed
    assert resumed.losses() == intact.losses()
    assert all(torch.equal(value, intact.weights()[name]) for name, value in resumed.weights().items())
