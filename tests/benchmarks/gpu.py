"""What a card does, part after part: a real sweep, losses, answers, full-parameter DPO, packing, LoRA, answering.

Each part prints its figures as it ends, and a part that fails or takes too long is named in `failed`; the others go on.
A part that begins after the time is over is named in `skipped`. The large policy has random weights, its pairs are
random and up to 512 tokens long, and it trains in bfloat16 under ZeRO-3 with one process at the largest batch that
fits. Beside it trains TRL's trainer with a live reference. `--shape tiny` runs on the CPU as well; its figures say
nothing about a card.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.benchmarks import _gpu
from tests.benchmarks._options import is_smoke, parse

Figures = dict[str, Any]
_THROUGHPUT = ("tokens_per_second", "examples_per_second", "padding_fraction", "mfu", "peak_memory_bytes")


class Parts:
    """The parts that have run, their figures, and the time that remains."""

    def __init__(self, minutes: float) -> None:
        self.figures: Figures = {}
        self.failed: list[str] = []
        self.skipped: list[str] = []
        self._end = time.monotonic() + 60 * minutes

    def run(self, name: str, part: Callable[[], Figures]) -> None:
        """Run one part, print its figures, and keep them."""
        if self.remaining() <= 0:
            self.skipped.append(name)
            return
        started = time.monotonic()
        try:
            figures = part()
        except Exception as error:  # the other parts are worth their time all the same
            self.failed.append(name)
            print(
                f"{name} FAILED after {time.monotonic() - started:.0f} s: {type(error).__name__}: {error}", flush=True
            )
            return
        rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
        self.figures |= rounded
        print(f"{name}, {time.monotonic() - started:.0f} s: {json.dumps(rounded)}", flush=True)

    def remaining(self) -> float:
        """Seconds that remain."""
        return self._end - time.monotonic()

    def alone(self, function: Callable[..., Any], *arguments: Any, cards: bool = True, **named: Any) -> Any:
        """Call a function in a process of its own, which sees the cards or does not.

        Raises:
            TimeoutError: the time is over; the process is killed.
            RuntimeError: the function failed, or its process died.
        """
        context: Any = multiprocessing.get_context("spawn")
        if is_smoke():  # without a card, imported libraries may be inherited
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["sacpo.steps.train", "deepspeed", "transformers.models.llama"])
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_answer, args=(theirs, cards, function, arguments, named))
        process.start()
        theirs.close()
        try:
            if not ours.poll(max(1.0, self.remaining())):
                raise TimeoutError("the time is over")
            ok, value = ours.recv()
        except EOFError:
            raise RuntimeError(f"its process died with status {process.exitcode}") from None
        finally:
            process.kill()
            process.join()
        if not ok:
            raise RuntimeError(value)
        return value


def _answer(pipe: Connection, cards: bool, function: Callable[..., Any], arguments: Any, named: Any) -> None:
    """Send (True, result) or (False, what failed). Runs in the new process, before torch is imported."""
    if not cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        pipe.send((True, function(*arguments, **named)))
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))


def card() -> tuple[str, str]:
    """Names of the card and of torch, as a process of its own sees them."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none (CPU)", torch.__version__


def losses(parts: Parts, root: Path) -> Figures:
    """Largest relative difference between a stage's losses on the card and on the CPU.

    Expected: below 1e-4 in float32 and 2e-2 in bfloat16.
    """
    figures: Figures = {}
    for dtype in ("float32", "bfloat16"):
        folder = root / dtype
        folder.mkdir()
        parts.alone(_gpu.make, folder, "tiny", 8, 32, dtype, cards=False)
        there, here = (
            parts.alone(_gpu.train, folder, f"cards-{cards}", 4, 32, dtype, cards=cards)[1] for cards in (True, False)
        )
        figures[f"loss_difference_{dtype}"] = max(abs(a / b - 1) for a, b in zip(there, here, strict=True))
    return figures


def greedy(parts: Parts, root: Path) -> Figures:
    """Share of greedy answers of the tiny policy that are the same on the card, by either engine, and on the CPU."""
    parts.alone(_gpu.make, root, "tiny", 2, 32, "float32", cards=False)
    expected, _ = parts.alone(_gpu.answers, root, "batched", 8, 16, 4, cards=False)
    figures: Figures = {}
    for engine in ("batched", "continuous"):
        made, _ = parts.alone(_gpu.answers, root, engine, 8, 16, 4)
        figures[f"greedy_equal_{engine}"] = sum(a == b for a, b in zip(made, expected, strict=True)) / len(expected)
    return figures


def largest(parts: Parts, root: Path, name: str, options: argparse.Namespace, **settings: Any) -> Figures:
    """Throughput of a stage at the largest per-device batch that fits; the names of the figures start with `name`."""
    for per_device in [n for n in _gpu.BATCHES if n <= options.batch]:
        settings["per_device_batch"] = per_device
        trained = parts.alone(_gpu.train, root, name, options.batch, options.length, "bfloat16", **settings)
        if trained is not None:
            throughput = {f"{name}_{key}": trained[0][key] for key in _THROUGHPUT if key in trained[0]}
            if "mfu" in trained[0]:
                throughput[f"{name}_mfu_with_padding"] = trained[0]["mfu"] / (1 - trained[0]["padding_fraction"])
            return throughput | {f"{name}_per_device_batch": per_device}
        print(f"{name}: {per_device} pairs per forward pass do not fit", flush=True)
    return {f"{name}_fits": False}


def answering(parts: Parts, root: Path, options: argparse.Namespace) -> Figures:
    """Tokens per second of the large policy's greedy answers, by engine."""
    figures: Figures = {}
    for engine in ("continuous", "batched"):
        made, seconds = parts.alone(_gpu.answers, root, engine, options.prompts, options.new_tokens, 64)
        figures[f"{engine}_answer_tokens_per_second"] = sum(map(len, made)) / seconds
    return figures


def main() -> None:
    """Run all parts and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="time for all parts together")
    parser.add_argument("--shape", choices=_gpu.SHAPES, default="7b", help="shape of the large policy")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="pairs in an update")
    parser.add_argument("--length", type=int, default=512, help="tokens of the longest text")
    parser.add_argument("--prompts", type=int, default=64, help="prompts that are answered")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens of the longest answer")
    toy = {"shape": "tiny", "pairs": 4, "batch": 2, "length": 32, "prompts": 2, "new_tokens": 4}
    options = parse(parser, **toy)
    parts = Parts(options.minutes)
    name, torch_version = parts.alone(card)
    head = {"card": name, "torch": torch_version, "commit": _commit(), "shape": options.shape}
    print(json.dumps(head), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {part: Path(temporary) / part for part in ("sweep", "losses", "greedy", "large")}
        for folder in folders.values():
            folder.mkdir()
        large = folders["large"]
        on_card = int(not name.startswith("none"))
        parts.run("sweep", lambda: parts.alone(_gpu.sweep_with_a_kill, folders["sweep"], on_card))
        parts.run("losses", lambda: losses(parts, folders["losses"]))
        parts.run("greedy answers", lambda: greedy(parts, folders["greedy"]))
        make = (_gpu.make, large, options.shape, options.pairs, options.length, "bfloat16")
        parts.run("large policy", lambda: parts.alone(*make))
        parts.run("full", lambda: largest(parts, large, "full", options))
        parts.run("live", lambda: largest(parts, large, "live", options, reference="live", packing=False))
        parts.run("padded", lambda: largest(parts, large, "padded", options, packing=False))
        parts.run("lora", lambda: largest(parts, large, "lora", options, lora=True))
        parts.run("answering", lambda: answering(parts, large, options))
    figures = parts.figures
    if "full_tokens_per_second" in figures:
        for other in {"live_tokens_per_second", "padded_tokens_per_second"} & figures.keys():
            ratio = figures["full_tokens_per_second"] / figures[other]
            figures[f"full_to_{other.removesuffix('_tokens_per_second')}"] = round(ratio, 3)
    print(json.dumps(head | figures | {"failed": parts.failed, "skipped": parts.skipped}))


def _commit() -> str:
    """The commit of this working tree; empty outside git."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
