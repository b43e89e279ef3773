"""What a process imports: each of these libraries takes seconds of every process, and some load many others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sacpo.cluster.worker import unused_libraries
from sacpo.planning.kinds import KINDS
from sacpo.planning.payloads import DPOPayload
from sacpo.spaces.model_loading import Loading
from tests.commands import import_problem
from tests.spaces import ROOT

TRAINING = {"trl", "peft", "bitsandbytes", "deepspeed", "datasets", "wandb", "mlflow", "matplotlib", "sklearn"}


def test_processes_that_train_nothing_load_no_library_of_training() -> None:
    modules = {kind.function.partition(":")[0] for name, kind in KINDS.items() if name != "train"}
    assert "sacpo.steps.generate" in modules
    assert import_problem(modules, TRAINING) == ""


@pytest.mark.parametrize(("quantization", "loaded"), [(None, ""), ("nf4", "bitsandbytes")])
def test_a_worker_loads_only_the_optional_libraries_that_its_stage_needs(quantization: str | None, loaded: str) -> None:
    payload = DPOPayload.model_construct(loading=Loading.model_validate({"quantization": quantization}))
    code = (
        f"import sys\nfrom sacpo.execution.output_capture import skip_libraries\n"
        f"skip_libraries({unused_libraries(payload)!r})\nimport deepspeed\nfrom sacpo.steps import train\n"
        "print(*[name for name in ('bitsandbytes', 'mlflow', 'wandb') if sys.modules.get(name)])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == loaded
