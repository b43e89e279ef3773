"""Writes a results folder. A table with numbers is never overwritten by one without."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sacpo.errors import StoreError
from sacpo.planning.plan import Plan
from sacpo.results.kept_plan import write_plan
from sacpo.results.labels import LABELS_FILE, human_tables
from sacpo.results.load import OPTIONAL_TABLES, TABLES, Results
from sacpo.results.sweep_facts import SWEEP_FILE, SweepFacts
from sacpo.store.backends import LocalBackend

_SHOWN = 5  # steps that an error names


class MissingStepsError(StoreError):
    """The store lacks steps that the existing tables were made of, so the tables are left as they are."""


def write_results(results: Results, plan: Plan, folder: Path) -> None:
    """Write the plan, the facts and the tables, each file atomically.

    Optional tables without rows are removed, but only if the results are complete (`sacpo.results.collect.complete`).

    Args:
        results: The tables.
        plan: The plan that they were made from.
        folder: The results folder on this machine.

    Raises:
        MissingStepsError: a trial that has numbers in the existing table would become pending; nothing was written.
        StoreError: a file cannot be written.
    """
    _check_no_number_is_lost(results, plan, folder)
    write_plan(plan, folder)
    write_facts(results.sweep, folder)
    files = LocalBackend(folder)
    for name in TABLES:
        files.write(f"{name}.parquet", getattr(results, name).to_parquet(index=False))
    files.write("trials.csv", results.trials.to_csv(index=False).encode())
    optional = {"exact": results.exact, **results.comparisons}
    if results.comparisons and (labels := folder / LABELS_FILE).exists():
        optional |= human_tables(results.trials, results.verdicts, pd.read_parquet(labels))
    for name in OPTIONAL_TABLES:
        table = optional.get(name)
        if table is not None and len(table):
            files.write(f"{name}.parquet", table.to_parquet(index=False))
        elif results.comparisons:
            files.remove(f"{name}.parquet")


def write_facts(facts: SweepFacts, folder: Path) -> None:
    """Write `sweep.json`.

    Raises:
        StoreError: it cannot be written.
    """
    LocalBackend(folder).write(SWEEP_FILE, facts.to_json().encode())


def _check_no_number_is_lost(results: Results, plan: Plan, folder: Path) -> None:
    path = folder / "trials.parquet"
    if not path.exists():
        return
    existing = pd.read_parquet(path, columns=["trial_id", "status"])
    has_numbers = set(existing.loc[existing["status"] == "done", "trial_id"])
    pending = set(results.trials.loc[results.trials["status"] == "pending", "trial_id"])
    lost = [trial for trial in plan.trials if trial.trial_id in has_numbers & pending]
    if not lost:
        return
    done = set(results.steps.loc[results.steps["status"] == "done", "step_id"])
    missing = list(dict.fromkeys(step for trial in lost for step in trial.steps if step not in done))
    labels = [plan.steps[step].label for step in missing[:_SHOWN]] + ["..."] * (len(missing) > _SHOWN)
    raise MissingStepsError(
        f"{folder}: the tables have numbers of {len(lost)} trials for which the store lacks {len(missing)} steps "
        f"({', '.join(labels)}), so the tables are left as they are; run the sweep's own command again to compute "
        "these steps, with --store if another store has them"
    )
