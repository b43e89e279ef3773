"""What a process imports: each of these libraries takes seconds of every process, and some load many others."""

from __future__ import annotations

import subprocess
import sys

from sacpo.planning.kinds import KINDS
from tests.spaces import ROOT

TRAINING = {"trl", "peft", "bitsandbytes", "deepspeed", "datasets", "wandb", "matplotlib", "sklearn"}


def test_processes_that_train_nothing_load_no_library_of_training() -> None:
    modules = sorted({kind.function.partition(":")[0] for name, kind in KINDS.items() if name != "train"})
    assert "sacpo.steps.generate" in modules
    code = (
        f"import sys, importlib\nfor module in {modules!r}:\n    importlib.import_module(module)\n"
        f"    loaded = sorted({TRAINING!r} & sys.modules.keys())\n"
        "    if loaded: sys.exit(f'{module} loads {loaded}')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
