"""`sacpo store STORE ls|du|gc|verify`: what a store holds, garbage collection, and a check of all digests."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from sacpo.command_line import command, parse
from sacpo.store import maintenance
from sacpo.store.step_store import Store

_UNITS = ("B", "kB", "MB", "GB", "TB")


@command
def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 done, 1 `verify` found damage, 2 not possible."""
    arguments = parse(_parser(), argv)
    store = Store(arguments.store)
    match arguments.action:
        case "ls":
            print(_sweeps(maintenance.content(store)))
        case "du":
            print(_sizes(maintenance.content(store)))
        case "gc":
            collect = maintenance.find_garbage if arguments.dry_run else maintenance.collect_garbage
            garbage = collect(store, arguments.keep or None, 3600 * arguments.grace_hours)
            print(_garbage(garbage, "would be removed" if arguments.dry_run else "removed"))
        case "verify":
            return _verify(store, arguments.retract)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sacpo store", description="Look after a store of steps.")
    parser.add_argument("store", help="a path or a bucket's URI, such as results/quickstart/store")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ls|du|gc|verify")
    actions.add_parser("ls", help="the sweeps that use the store, and what each needs")
    actions.add_parser("du", help="bytes by kind of step")
    collection = actions.add_parser("gc", help="remove steps that no sweep needs, and remains of killed attempts")
    collection.add_argument(
        "--keep",
        action="append",
        metavar="SWEEP",
        help="keep what this sweep needs (a name or a results folder as `ls` shows it), and remove the sweeps that are "
        "not named; may be given several times. Sweeps that run are always kept. Default: keep all sweeps",
    )
    collection.add_argument("--dry-run", action="store_true", help="show what would be removed")
    collection.add_argument(
        "--grace-hours",
        type=float,
        default=maintenance.GRACE_S / 3600,
        help="keep younger files (default: %(default)g)",
    )
    check = actions.add_parser("verify", help="read all files of done steps and compare their digests")
    check.add_argument("--retract", action="store_true", help="make sweeps compute damaged steps again")
    return parser


def _sweeps(content: maintenance.StoreContent) -> str:
    rows = [("sweep", "state", "started", "done", "needs", "alone", "results")]
    for use in content.sweeps:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(use.started_at))
        done = f"{use.done} of {use.steps}"
        rows.append((use.name, use.state, started, done, _size(use.bytes), _size(use.bytes_alone), use.results))
    if content.unneeded_steps:
        rows.append(("(none)", "", "", str(content.unneeded_steps), _size(content.unneeded_bytes), "", ""))
    return _table(rows)


def _sizes(content: maintenance.StoreContent) -> str:
    rows = [("what", "steps", "size")]
    rows += [(kind, str(steps), _size(size)) for kind, (steps, size) in content.kinds.items()]
    rows += [(folder, "", _size(size)) for folder, size in sorted(content.other.items())]
    steps = sum(steps for steps, _ in content.kinds.values())
    total = sum(size for _, size in content.kinds.values()) + sum(content.other.values())
    return _table([*rows, ("total", str(steps), _size(total))])


def _garbage(garbage: maintenance.Garbage, verb: str) -> str:
    lines = [f"{_size(size):>10}  {key}" for key, size in garbage.folders.items()]
    lines += [f"     sweep  {run.entry.name} ({run.results})" for run in garbage.runs]
    lines += [f"     stays  {step}: {reason}" for step, reason in garbage.kept.items()]
    return "\n".join([*lines, f"{_size(sum(garbage.folders.values()))} in {len(garbage.folders)} folders {verb}"])


def _verify(store: Store, retract: bool) -> int:
    damage = maintenance.find_damage(store)
    for step, problem in damage.items():
        print(f"{step}: {problem}" + ("; sweeps compute it again" if retract else ""))
        if retract:
            store.retract(step, problem)
    way_out = "; --retract makes sweeps compute them again" if damage and not retract else ""
    print(f"{len(damage)} damaged steps{way_out}")
    return 1 if damage else 0


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _size(number: float) -> str:
    """A number of bytes for people: `1.3 MB`."""
    unit = 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.0f} {_UNITS[unit]}" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"


if __name__ == "__main__":
    sys.exit(main())
