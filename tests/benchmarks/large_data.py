"""Reading and tokenising many short preference rows: the data step, against `datasets.map` doing the same.

Each side runs in a process of its own and writes prompt, chosen and rejected token ids of every row to Parquet. The
data step also checks every row and keeps evaluation prompts out. Peak memory is that of the process, imports included.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks._options import parse

TEMPLATE = "USER: {prompt} ASSISTANT: "
WORDS = [
    "the",
    "a",
    "quick",
    "slow",
    "brown",
    "lazy",
    "fox",
    "dog",
    "jumps",
    "runs",
    "over",
    "under",
    "near",
    "river",
    "hill",
    "and",
    "then",
    "stops",
    "to",
    "look",
    "at",
    "it",
]
MAX_LENGTH = 512


def write_rows(path: Path, rows: int) -> None:
    """Write preference rows of about 40 words in all as JSONL."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=words))

    with path.open("w") as file:
        for i in range(rows):
            row = {"prompt": f"{i} {text(10)}?", "chosen": f"yes {text(14)}.", "rejected": f"no {text(14)}."}
            file.write(json.dumps(row) + "\n")


def make_tokenizer(folder: Path, path: Path) -> None:
    """Train a byte-level BPE on the first rows, so that texts have as many tokens as with a real tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    with path.open() as file:
        lines = [line for line, _ in zip(file, range(1000), strict=False)]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(folder)


def data_step(folder: Path) -> None:
    """The product's data step."""
    from sacpo.planning.payloads import FileContent, FilesPayload
    from sacpo.spaces.space import Files
    from sacpo.steps import data
    from tests.jobs import job

    files = Files.model_validate({"kind": "files", "path": str(folder / "rows.jsonl"), "format": "pairs"})
    payload = FilesPayload(
        objective="helpfulness",
        shape="pairs",
        max_length=MAX_LENGTH,
        prompt_template=TEMPLATE,
        excluded_prompts="none",
        rows_from="files",
        files=files,
        content=FileContent(sha256="0"),
    )
    data.run(job(folder / "step", "data", payload, {"model": folder / "tokenizer"}))


def datasets_map(folder: Path) -> None:
    """The same with batched `datasets.map` calls, without checks."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")

    def tokenise(batch: dict[str, list[str]]) -> dict[str, Any]:
        texts = [TEMPLATE.replace("{prompt}", prompt) for prompt in batch["prompt"]]
        columns: dict[str, Any] = {"prompt_ids": tokenizer(texts)["input_ids"]}
        for name in ("chosen", "rejected"):
            answers = zip(texts, batch[name], strict=True)
            ids = tokenizer([text + answer + tokenizer.eos_token for text, answer in answers])["input_ids"]
            pairs = zip(ids, columns["prompt_ids"], strict=True)
            columns[f"{name}_ids"] = [whole[len(prompt) :] for whole, prompt in pairs]
        return columns

    rows = datasets.load_dataset(
        "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")
    )
    rows.map(tokenise, batched=True, remove_columns=rows.column_names).to_parquet(str(folder / "mapped.parquet"))


SIDES: dict[str, Callable[[Path], None]] = {"data_step": data_step, "datasets_map": datasets_map}


def measured(name: str, folder: Path, queue: Any) -> None:
    """Run one side; puts its seconds and its peak memory in bytes into the queue."""
    started = time.monotonic()
    SIDES[name](folder)
    seconds = time.monotonic() - started
    queue.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def main() -> None:
    """Run both sides one after the other and print rows per second and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=SIDES, help="run one of the sides")
    arguments = parse(parser, rows=200)
    context = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {"rows": arguments.rows}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_rows(folder / "rows.jsonl", arguments.rows)
        make_tokenizer(folder / "tokenizer", folder / "rows.jsonl")
        for name in [arguments.only] if arguments.only else SIDES:
            queue = context.Queue()
            process = context.Process(target=measured, args=(name, folder, queue))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name} ended with status {process.exitcode}")
            seconds, peak = queue.get()
            figures[f"{name}_rows_per_second"] = round(arguments.rows / seconds)
            figures[f"{name}_peak_gigabytes"] = round(peak / 1e9, 2)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
