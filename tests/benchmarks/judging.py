"""Time of 1,272 LLM judge calls, the number of the paper's evaluation, to a server that takes 0.5 s per call.

The server has a process of its own. The paper's code judges in a sequential loop; this loop is measured on a few calls
in the same run and extrapolated.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from sacpo.judges.endpoint import Call, Endpoint
from sacpo.judges.ledger import Ledger, Meter
from sacpo.judges.llm import ask
from sacpo.judges.rubric import RUBRICS
from tests.benchmarks._options import parse
from tests.servers import Behaviour, Say, scripted, verdict

ANSWER = "Soak the beans over night, and cook them in fresh water until they are soft. " * 8


def serve(pipe: Connection, delay: float) -> None:
    """Run a judge that takes `delay` seconds per call; send its address, and stop at the first message."""

    def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        return Say(verdict("A" if len(prompt) % 2 else "B"), delay=delay)

    with scripted(policy) as server:
        pipe.send(server.base_url)
        pipe.recv()


def seconds(base_url: str, calls: int, concurrency: int) -> float:
    """Wall time of `calls` calls, with a new ledger and a new meter."""
    endpoint = Endpoint("scripted", RUBRICS["helpfulness"], base_url=base_url, concurrency=concurrency)
    todo = [Call(f"How do I cook beans? ({i})", ANSWER, ANSWER[::-1]) for i in range(calls)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.monotonic()
        replies, _ = ask(todo, endpoint, Ledger(folder, "one"), Meter(folder, None, None, (0, 0)), folder / "slots")
        taken = time.monotonic() - started
    assert all(reply.outcome in ("first", "second") and reply.attempts == 1 for reply in replies)
    return taken


def main() -> None:
    """Time the concurrent and the sequential calls and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1272)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--delay", type=float, default=0.5, help="seconds that the server takes per call")
    parser.add_argument("--sequential-calls", type=int, default=40, help="calls of the sequential loop")
    arguments = parse(parser, calls=16, concurrency=8, delay=0.02, sequential_calls=4)
    context = multiprocessing.get_context("spawn")
    pipe, server_pipe = context.Pipe()
    process = context.Process(target=serve, args=(server_pipe, arguments.delay), daemon=True)
    process.start()
    base_url = pipe.recv()
    taken = seconds(base_url, arguments.calls, arguments.concurrency)
    one_by_one = seconds(base_url, arguments.sequential_calls, 1)
    pipe.send("end")
    process.join()
    limit = math.ceil(arguments.calls / arguments.concurrency) * arguments.delay
    sequential = one_by_one / arguments.sequential_calls * arguments.calls
    print(f"{arguments.calls} verdicts at concurrency {arguments.concurrency}: {taken:.2f} s; no faster than {limit} s")
    print(f"{arguments.sequential_calls} one by one: {one_by_one:.2f} s, so {sequential:.0f} s for all (extrapolated)")
    figures = {
        "seconds": round(taken, 2),
        "limit_seconds": limit,
        "over_limit": round(taken / limit, 3),
        "vs_sequential": round(sequential / taken, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
