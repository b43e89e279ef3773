"""Sweeps on one store while a process is killed every few seconds: what is lost, what is repeated.

The killed processes are picked at random among all that the sweeps have started: drivers, Ray's own processes,
controllers, workers. A driver that ended is started again by the same command, as its user would do. When the time is
up, all sweeps may finish; their tables are compared with those of the same sweeps without kills.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from sacpo.results import load
from sacpo.store.backends import open_backend
from tests.benchmarks._options import parse, run_sweep
from tests.commands import arguments, write_space
from tests.s3 import Service
from tests.spaces import ROOT, small

COLUMNS = ["trial_id", "label", "status", "helpfulness", "harmlessness", "kl_to_sft"]


def main() -> None:
    """Run the sweeps with and without kills and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to kill")
    parser.add_argument("--every", type=float, default=12.0, help="mean seconds between two kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--address", default="local", help="passed on to the sweeps")
    parser.add_argument("--bucket", action="store_true", help="their store is in a bucket on loopback, not on a path")
    options = parse(parser, sweeps=1, seconds=8.0, every=4.0, address="in-process")
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        folder = Path(temporary)
        store = str(folder / "store")
        if options.bucket:
            service = Service(folder / "log")
            stack.callback(service.close)
            os.environ["SACPO_CACHE"] = str(folder / "cache")
            store = service.uri("store")
        spaces = [write_space(small(name=f"soak-{i}", seeds=[i // 2]), folder) for i in range(options.sweeps)]
        for i, space in enumerate(spaces):
            more = ("--store", str(folder / "calm"), "--address", options.address)
            run_sweep(space, folder / f"calm-{i}", *more)
        soak = Soak(spaces, folder, store, options.address)
        stop = time.monotonic() + options.seconds
        while time.monotonic() < stop and not soak.over():
            time.sleep(rng.expovariate(1 / options.every))
            soak.kill_one(rng)
            soak.watch()
        kills = sum(soak.kills.values())
        print(f"{kills} kills: {dict(soak.kills)}; {soak.restarts} driver restarts", flush=True)
        survived = soak.finish(3600)
        lost = 0
        for i in range(options.sweeps):
            calm, after = (load(folder / f"{name}-{i}").trials[COLUMNS] for name in ("calm", "soak"))
            same = calm.eq(after) | (calm.isna() & after.isna())
            lost += int((~same.all(axis=1)).sum())
        figures = {
            "sweeps_survived": survived,
            "sweeps": options.sweeps,
            "kills": kills,
            "driver_restarts": soak.restarts,
            "steps_repeated": soak.repeated(),
            "rows_lost": lost,
        }
    print(json.dumps(figures))


class Soak:
    """The sweeps whose processes are killed.

    Args:
        spaces: Their files.
        folder: For their results.
        store: URI of their store.
        address: The sweeps' `--address`.
    """

    def __init__(self, spaces: list[Path], folder: Path, store: str, address: str) -> None:
        more = ("--store", store, "--address", address)
        self.commands = [arguments(space, folder / f"soak-{i}", *more) for i, space in enumerate(spaces)]
        self.store, self.output = open_backend(store, "--store"), (folder / "output").open("ab")
        self.kills: Counter[str] = Counter()
        self.restarts = 0
        self._records: dict[str, int] = {}
        self._repeated: set[str] = set()
        self.drivers = [self._start(command) for command in self.commands]

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=ROOT, stdout=self.output, stderr=self.output)

    def kill_one(self, rng: random.Random) -> None:
        """Kill one process of the running sweeps; each kind of process is equally likely."""
        kinds: dict[str, list[psutil.Process]] = {}
        for driver in self.drivers:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(driver.pid)
                kinds.setdefault("driver", []).append(root)
                for process in root.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        words = process.cmdline() or [process.name()]
                        kinds.setdefault(Path(words[0].partition("-")[0]).name.partition(":")[0], []).append(process)
        if kinds:
            kind = rng.choice(sorted(kinds))
            with contextlib.suppress(psutil.Error):
                rng.choice(kinds[kind]).kill()
                self.kills[kind] += 1

    def watch(self) -> None:
        """Restart drivers that ended too early, and note records that were written again."""
        for i, driver in enumerate(self.drivers):
            if driver.poll() not in (None, 0):
                self.drivers[i] = self._start(self.commands[i])
                self.restarts += 1
        for step in self.store.list_names("steps"):
            record = self.store.read(f"steps/{step}/record.json")
            if record is not None:
                number = json.loads(record)["attempts"]
                if self._records.setdefault(step, number) != number:
                    self._repeated.add(step)

    def over(self) -> bool:
        """Whether all sweeps ended well."""
        return all(driver.poll() == 0 for driver in self.drivers)

    def finish(self, timeout: float) -> int:
        """Let all sweeps end; the number of those that ended well."""
        deadline = time.monotonic() + timeout
        while not self.over() and time.monotonic() < deadline:
            self.watch()
            time.sleep(1.0)
        self.watch()
        for driver in self.drivers:
            if driver.poll() is None:
                driver.terminate()
        return sum(driver.poll() == 0 for driver in self.drivers)

    def repeated(self) -> int:
        """Number of steps that were done and then done again."""
        return len(self._repeated)


if __name__ == "__main__":
    main()
