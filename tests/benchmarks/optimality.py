"""Share of the exact optimum that training reaches: over the number of pairs, and over lambda at fixed pairs.

By the paper's Theorem 2 the gap shrinks as pairs are added and grows with lambda / beta. Every number is the
`share_of_optimum` of a real sweep. All sweeps share the SFT policy through one store and train for about the same
number of updates.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd

from sacpo.results import load
from sacpo.sweep import QUICKSTART
from tests.benchmarks._options import parse, run_sweep
from tests.benchmarks.quickstart import TOY

BETA = 2.0


def main() -> None:
    """Run one sweep per number of pairs and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=[1024, 4096, 16384, 65536])
    parser.add_argument("--lambdas", type=float, nargs="+", default=[0.5, 1.0, 2.0, 4.0])
    parser.add_argument("--updates", type=int, default=192, help="of each stage, about")
    arguments = parse(parser, pairs=[512], lambdas=[1.0], updates=2)
    more = ["--address", "in-process", *(word for setting in TOY for word in ("--set", setting))]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for pairs in arguments.pairs:
            folder = Path(temporary)
            rows.append(shares(pairs, arguments.updates, arguments.lambdas, folder, more if arguments.smoke else []))
            print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)
    table = pd.DataFrame(rows).set_index("pairs")
    largest = table.iloc[-1]
    figures = {
        "largest_pairs": int(table.index[-1]),
        "largest_share_lambda_1": round(float(largest["lambda 1"]), 4),
        "rises_with_pairs": bool(table.iloc[0].lt(largest).all()),
        "falls_with_lambda": {str(pairs): bool(row.iloc[0] > row.iloc[-1]) for pairs, row in table.iterrows()},
        "shares": {str(pairs): row.round(4).to_dict() for pairs, row in table.iterrows()},
    }
    print(json.dumps(figures))


def shares(pairs: int, updates: int, lambdas: list[float], folder: Path, first: list[str]) -> dict[str, float]:
    """Share of the exact optimum's improvement after stage 1 and at each lambda.

    Args:
        pairs: Preference pairs of each objective.
        updates: Updates of each stage, about.
        lambdas: Values of lambda in stage 2.
        folder: For the sweep's results; its store is shared.
        first: Arguments of the sweep that its own settings come after.
    """
    epochs = max(2, round(updates * 256 / pairs))
    grid = {"chain": "dpo:helpfulness>dpo:harmlessness", "beta": BETA, "beta_over_lambda": [BETA / v for v in lambdas]}
    settings = [f"chains={json.dumps([grid])}", "merges=[]", f"training.dpo.epochs={epochs}"]
    settings += [f"data.preferences.{name}.rows={pairs}" for name in ("helpfulness", "harmlessness")]
    more = [*first, *(word for setting in settings for word in ("--set", setting))]
    run_sweep(QUICKSTART, folder / str(pairs), "--store", str(folder / "store"), *more)
    trials = load(folder / str(pairs)).trials
    row: dict[str, float] = {
        "pairs": pairs,
        "stage 1": trials.loc[trials["method"] == "one-step", "share_of_optimum"].item(),
    }
    for value in lambdas:
        row[f"lambda {value:g}"] = trials.loc[trials["lambda"] == value, "share_of_optimum"].item()
    return row


if __name__ == "__main__":
    main()
