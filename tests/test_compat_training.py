"""The private hooks of `sacpo.compat` for TRL, transformers and DeepSpeed: each exists in the library and is called."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import transformers
import trl
from datasets import Dataset
from torch.utils import cpp_extension

from sacpo.compat import deepspeed as compat_deepspeed
from sacpo.compat import trl as compat_trl
from sacpo.compat.transformers import attention_of
from sacpo.errors import StepError
from sacpo.steps.throughput import ThroughputCounter
from sacpo.steps.trainers import TRAINERS
from tests.jobs import policy


class Called(Exception):
    """Raised by a stub, to prove that the library calls it."""


PAIRS = [{"prompt_ids": [5, 6], "chosen_ids": [10 + i, 1], "rejected_ids": [20 + i, 1]} for i in range(4)]
LABELLED = [
    {"prompt_ids": [5, 6], "completion_ids": [10 + i, 1], "label": i % 2 == 0, "KL_completion_ids": [20 + i, 1]}
    for i in range(4)
]
DEMONSTRATIONS = [{"input_ids": [5, 6, 10 + i, 1], "labels": [-100, -100, 10 + i, 1]} for i in range(4)]
WHOLE_PAIRS = [{"chosen_ids": [5, 6, 10 + i, 1], "rejected_ids": [5, 6, 20 + i, 1]} for i in range(4)]
ROWS = {"sft": DEMONSTRATIONS, "dpo": PAIRS, "kto": LABELLED, "reward": WHOLE_PAIRS}
REFERENCE = {"dpo": ("ref_chosen_logps", "ref_rejected_logps"), "kto": ("ref_logps", "ref_KL_logps")}
ORDER = [2, 0, 3, 1]
HOOKS = {
    compat_trl.OrderedExamples: ("_get_train_sampler",),
    compat_trl.PreparedExamples: ("_prepare_dataset", "_precompute_ref_logps"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy of the synthetic world."""
    return policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often TRL calls each hook."""
    counts: Counter[str] = Counter()

    def counting(name: str, hook: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **named: Any) -> Any:
            counts[name] += 1
            return hook(*args, **named)

        return wrapper

    for mixin, names in HOOKS.items():
        for name in names:
            monkeypatch.setattr(mixin, name, counting(name, vars(mixin)[name]))
    return counts


def build(method: str, model: Path, folder: Path, rows: list[dict[str, Any]], **arguments: Any) -> Any:
    """A trainer of a method as a training step builds it."""
    trainer_class, config_class = TRAINERS[method]
    config = config_class(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        **arguments,
    )
    trainer = trainer_class(
        model=str(model),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
    )
    trainer.counter, trainer.order = ThroughputCounter(), ORDER
    return trainer


def arguments_of(method: str) -> dict[str, Any]:
    """Arguments that only one method has."""
    if method == "sft":
        return {"dataset_kwargs": {"skip_prepare_dataset": True}}
    return {"precompute_ref_log_probs": True} if method in REFERENCE else {}


def test_the_hooks_are_methods_of_the_installed_trainers() -> None:
    assert "_get_train_sampler" in vars(transformers.Trainer)
    for trainer in (trl.DPOTrainer, trl.KTOTrainer):
        assert {"_prepare_dataset", "_precompute_ref_logps"} <= vars(trainer).keys()


@pytest.mark.parametrize("method", list(TRAINERS))
def test_examples_are_taken_in_the_given_order(method: str, model: Path, tmp_path: Path, calls: Counter[str]) -> None:
    trainer = build(method, model, tmp_path, with_reference(method, 0.0), **arguments_of(method))
    (batch,) = list(trainer.get_train_dataloader())
    assert calls["_get_train_sampler"] == 1
    assert batch["input_ids"][: len(ORDER), 2].tolist() == [10 + i for i in ORDER]


def with_reference(method: str, value: float) -> list[dict[str, Any]]:
    """A method's rows, with the same reference log-probability everywhere if it has a reference."""
    return [row | dict.fromkeys(REFERENCE.get(method, ()), value) for row in ROWS[method]]


@pytest.mark.parametrize("method", list(REFERENCE))
def test_prepared_examples_and_their_reference_reach_the_loss_as_they_are(
    method: str, model: Path, tmp_path: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(method, model, tmp_path, with_reference(method, -1.5), **arguments_of(method))
    assert calls == Counter({"_prepare_dataset": 1, "_precompute_ref_logps": 1})
    assert trainer.train_dataset.to_list() == with_reference(method, -1.5)
    losses = Mock(side_effect=type(trainer)._compute_loss)
    monkeypatch.setattr(trainer, "_compute_loss", lambda *args: losses(trainer, *args))
    with pytest.raises(StepError, match=r"differ by up to .* nats from those of the policy"):
        trainer.train()
    losses.assert_not_called()
    trainer.reference_difference = 0.0  # as after a comparison
    trainer.train()
    losses.assert_called_once()
    inputs = losses.call_args.args[2]
    assert all(inputs[column].tolist() == [-1.5] * len(ORDER) for column in REFERENCE[method])
    assert trainer.counter.slots > 0, "the counter saw the batch"


# ----------------------------------------------------------------------------------------------------------- DeepSpeed


@pytest.fixture
def operator_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mock:
    """DeepSpeed's function that builds the operator, replaced; the build folder is a temporary one."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    build = Mock()
    monkeypatch.setattr(importlib.import_module("deepspeed.comm.torch"), "build_shm_op", build)
    return build


def test_the_operator_is_built_where_torch_builds_it_behind_torchs_lock_file(
    operator_build: Mock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    assert ShareMemCommBuilder.NAME == compat_deepspeed.OPERATOR
    source = tmp_path / "operator.cpp"
    source.touch()
    baton = Mock(side_effect=Called)
    monkeypatch.setattr(cpp_extension, "FileBaton", baton)
    with pytest.raises(Called):
        cpp_extension.load(compat_deepspeed.OPERATOR, [str(source)])
    baton.assert_called_once_with(str(compat_deepspeed.operator_folder() / "lock"))


def test_each_environment_has_a_build_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_extension, "get_default_build_root", lambda: str(tmp_path))
    folders = set()
    for prefix in ("/environments/one", "/environments/two"):
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
        monkeypatch.setattr(sys, "prefix", prefix)
        folders.add(compat_deepspeed.operator_folder())
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    assert len(folders) == 2
    assert all(tmp_path in folder.parents for folder in folders)


def test_deepspeed_builds_the_operator_for_its_backend(operator_build: Mock) -> None:
    from deepspeed.comm.torch import TorchBackend

    operator_build.side_effect = Called
    with pytest.raises(Called):
        TorchBackend("gloo", timedelta(seconds=1), None)


def test_a_lock_file_that_no_process_holds_is_deleted_before_the_build(operator_build: Mock) -> None:
    lock = compat_deepspeed.operator_folder() / "lock"
    lock.touch()
    operator_build.side_effect = lambda: lock.exists()
    with lock.open():
        compat_deepspeed.load_operator()
        assert lock.exists(), "a process is at the build"
    operator_build.side_effect = lambda: pytest.fail("the lock file is still there") if lock.exists() else None
    compat_deepspeed.load_operator()
    assert operator_build.call_count == 2


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_a_models_implementation_of_attention_can_be_read_back(model: Path, name: str) -> None:
    assert attention_of(transformers.AutoModelForCausalLM.from_pretrained(model, attn_implementation=name)) == name
