"""The paper's pipeline as plain scripts on TRL, one process per command: the benchmarks compare sweeps with it.

`train` is for `accelerate launch`. `merge`, `answer` and `judge` do for one policy what the scripts of the paper's code
do: they write an average to disk, answer one prompt at a time, and call the judge in a sequential loop.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any


def train(policy: Path, data: Path, out: Path, kl_parameter: float, settings: dict[str, Any]) -> None:
    """One DPO stage with a live reference on tokenised examples; `clock.json` gets the times of its updates."""
    import deepspeed
    import pyarrow.parquet as pq
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from sacpo.compat.deepspeed import load_operator

    load_operator()  # torch waits forever for the lock file of a build that was killed
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)

    class Tokenised(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.first, self.ends = 0.0, list[float]()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.first = self.first or time.time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.time())

    clock = Clock()
    arguments = DPOConfig(
        output_dir=str(out), beta=kl_parameter, report_to=[], disable_tqdm=True, save_strategy="no", logging_steps=1,
        use_cpu=os.environ.get("DS_ACCELERATOR") == "cpu", **settings,
    )  # fmt: skip
    rows = Dataset.from_list(pq.read_table(data / "examples.parquet").to_pylist())
    tokenizer = AutoTokenizer.from_pretrained(policy)
    trainer = Tokenised(str(policy), args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[clock])
    trainer.train()
    trainer.save_model(str(out))
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(out)
        (out / "clock.json").write_text(json.dumps({"first": clock.first, "ends": clock.ends}))
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # a process sometimes aborts while it exits ("terminate called without an active exception")


def merge(first: Path, second: Path, q: float, out: Path) -> None:
    """Write the average of two policies as a checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    left, right = (AutoModelForCausalLM.from_pretrained(path) for path in (first, second))
    with torch.no_grad():
        for a, b in zip(left.parameters(), right.parameters(), strict=True):
            a.mul_(1 - q).add_(b, alpha=q)
    left.save_pretrained(out)
    AutoTokenizer.from_pretrained(first).save_pretrained(out)


def answer(policy: Path, prompts: Path, out: Path, samples: int, max_new_tokens: int) -> None:
    """Sample answers to prompts, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(policy)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    torch.manual_seed(0)
    rows = []
    for prompt in json.loads(prompts.read_text()):
        for _ in range(samples):
            inputs = tokenizer(prompt, return_tensors="pt")
            output = model.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=True, pad_token_id=tokenizer.pad_token_id
            )
            text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            rows.append({"prompt": prompt, "response": text})
    out.write_text(json.dumps(rows))


def judge(answers: Path, baseline: Path, base_url: str, out: Path) -> None:
    """Judge both orders of every pair in a sequential loop; a failed call is a tie, as in the paper's code."""
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none")
    rng = random.Random(0)
    score, count = 0.0, 0
    for ours, other in zip(json.loads(answers.read_text()), json.loads(baseline.read_text()), strict=True):
        for turned in (False, True):
            pair = [ours["response"], other["response"]][:: -1 if turned else 1]
            token = f"{rng.getrandbits(64):x}"
            names = ("message", "answer A", "answer B")
            parts = zip(names, [ours["prompt"], *pair], strict=True)
            content = "\n".join(f"<<<{name} {token}>>>\n{text}\n<<<end of {name} {token}>>>" for name, text in parts)
            try:
                reply = client.chat.completions.create(
                    model="scripted", temperature=0, messages=[{"role": "user", "content": content}]
                )
                won = ('"A"' in (reply.choices[0].message.content or "")) is not turned
                score += float(won)
            except Exception:
                score += 0.5
            count += 1
    out.write_text(json.dumps({"win_rate": score / count, "calls": count}))


COMMANDS = {"train": train, "merge": merge, "answer": answer, "judge": judge}


def run(command: str, values: dict[str, Any]) -> None:
    """Run one command with arguments of plain values."""
    paths = ("policy", "data", "out", "first", "second", "prompts", "answers", "baseline")
    COMMANDS[command](**{name: Path(value) if name in paths else value for name, value in values.items()})


def main() -> None:
    """Run one command with the arguments given as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("values", help="the function's arguments as a JSON object")
    arguments = parser.parse_args()
    run(arguments.command, json.loads(arguments.values))


if __name__ == "__main__":
    main()
