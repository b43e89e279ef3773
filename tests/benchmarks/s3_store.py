"""Wall time of a sweep with its store in a bucket (on loopback), against a store on a path: both cold, in turns."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from sacpo.results import load
from sacpo.sweep import QUICKSTART
from tests.benchmarks._options import parse, run_sweep
from tests.benchmarks.quickstart import TOY
from tests.s3 import Service


def main() -> None:
    """Run the pairs of sweeps and print the medians of both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", type=Path, default=QUICKSTART)
    parser.add_argument("--pairs", type=int, default=2, help="sweeps of each side; their order alternates")
    arguments = parse(parser, pairs=1)
    toy = ["--address", "in-process", *(word for setting in TOY for word in ("--set", setting))]
    more = toy if arguments.smoke else []
    space = arguments.space.absolute()
    columns = ["label", "helpfulness", "harmlessness"]
    seconds: dict[str, list[float]] = {"path": [], "bucket": []}
    same = True
    with tempfile.TemporaryDirectory() as temporary:
        service = Service(Path(temporary) / "log")
        try:
            for pair in range(arguments.pairs):
                folder = Path(temporary) / str(pair)
                os.environ["SACPO_CACHE"] = str(folder / "cache")
                stores = {"path": str(folder / "store"), "bucket": service.uri(f"store-{pair}")}
                for side in sorted(stores, reverse=pair % 2 == 0):
                    seconds[side].append(timed(space, folder / side, stores[side], *more))
                path, bucket = (load(folder / side).trials[columns] for side in stores)
                same = same and bool(path.equals(bucket))
                print({side: round(values[-1], 1) for side, values in seconds.items()}, flush=True)
        finally:
            service.close()
    path_s, bucket_s = (statistics.median(seconds[side]) for side in ("path", "bucket"))
    figures = {
        "path_seconds": round(path_s, 1),
        "bucket_seconds": round(bucket_s, 1),
        "overhead": round(bucket_s / path_s - 1, 3),
        "same_win_rates": same,
    }
    print(json.dumps(figures))


def timed(space: Path, results: Path, store: str, *more: str) -> float:
    """Seconds of one sweep."""
    started = time.monotonic()
    run_sweep(space, results, "--store", store, *more)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
