"""How fast verdicts come: the method's evaluation of 1,272 judge calls, against a server that takes 0.5 s for each.

The server has a process of its own. The sequential loop, which is what the method's own evaluation does, is measured on
a few calls in the same run and extrapolated.
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

from sacpo.judges.ledger import Ledger, Meter
from sacpo.judges.llm import Call, Endpoint, ask
from sacpo.judges.rubric import RUBRICS
from tests.servers import Behaviour, Say, scripted, verdict

DELAY = 0.5
SEQUENTIAL_CALLS = 40
ANSWER = "Soak the beans over night, and cook them in fresh water until they are soft. " * 8


def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
    return Say(verdict("A" if len(prompt) % 2 else "B"), delay=DELAY)


def serve(pipe: Connection) -> None:
    """Tell the address of a server, and end it when told to."""
    with scripted(policy) as server:
        pipe.send(server.base_url)
        pipe.recv()


def seconds(base_url: str, calls: int, concurrency: int) -> float:
    """Wall time of that many calls, with a ledger and a meter of their own."""
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1272)
    parser.add_argument("--concurrency", type=int, default=64)
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    base_url = here.recv()
    taken = seconds(base_url, arguments.calls, arguments.concurrency)
    one_by_one = seconds(base_url, SEQUENTIAL_CALLS, 1)
    here.send("end")
    process.join()
    limit = math.ceil(arguments.calls / arguments.concurrency) * DELAY
    sequential = one_by_one / SEQUENTIAL_CALLS * arguments.calls
    print(f"{arguments.calls} verdicts at concurrency {arguments.concurrency}: {taken:.2f} s; no faster than {limit} s")
    print(f"{SEQUENTIAL_CALLS} one by one: {one_by_one:.2f} s, so {sequential:.0f} s for all (extrapolated)")
    figures = {
        "seconds": round(taken, 2),
        "limit_seconds": limit,
        "over_limit": round(taken / limit, 3),
        "vs_sequential": round(sequential / taken, 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
