"""A store in a bucket against one on a path: the same space, cold, one after the other, wall time of both."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from sacpo import results as tables
from sacpo.sweep import QUICKSTART
from tests.commands import sweep
from tests.s3 import Service


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", type=Path, default=QUICKSTART)
    space = parser.parse_args().space.absolute()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["SACPO_CACHE"] = str(folder / "cache")
        service = Service(folder / "log")
        try:
            path = timed(space, folder / "path", str(folder / "store"))
            bucket = timed(space, folder / "bucket", service.uri("store"))
        finally:
            service.close()
        before, after = (tables.load(folder / name).trials for name in ("path", "bucket"))
        columns = ["label", "helpfulness", "harmlessness"]
        figures = {
            "path_seconds": round(path, 1),
            "bucket_seconds": round(bucket, 1),
            "overhead": round(bucket / path - 1, 3),
            "same_win_rates": bool(before[columns].equals(after[columns])),
        }
    print(json.dumps(figures))


def timed(space: Path, results: Path, store: str) -> float:
    started = time.monotonic()
    answer = sweep(space, results, "--store", store, timeout=3600)
    if answer.returncode:
        raise SystemExit(answer.stdout + answer.stderr)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
