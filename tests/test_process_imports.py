"""What a process imports: each of these libraries takes seconds of every process, and some load many others."""

from __future__ import annotations

from sacpo.planning.kinds import KINDS
from tests.commands import import_problem

TRAINING = {"trl", "peft", "bitsandbytes", "deepspeed", "datasets", "wandb", "matplotlib", "sklearn"}


def test_processes_that_train_nothing_load_no_library_of_training() -> None:
    modules = {kind.function.partition(":")[0] for name, kind in KINDS.items() if name != "train"}
    assert "sacpo.steps.generate" in modules
    assert import_problem(modules, TRAINING) == ""
