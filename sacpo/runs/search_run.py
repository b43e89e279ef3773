"""Runs a sweep with a search: in rounds, each of which grows the plan by what the searcher proposed and carries it out.

The grown plan is written before its steps are run, and has the proposals. A search that was stopped goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console

from sacpo.planning.planner import make_plan
from sacpo.results.kept_plan import find_kept, with_added_judges
from sacpo.results.load import Results, load_folder
from sacpo.runs.sweep_run import SweepRun
from sacpo.search.rules import ending
from sacpo.spaces.merging import LINEAR
from sacpo.spaces.search import Proposal

if TYPE_CHECKING:
    from sacpo.cluster.searcher import PolicySearcher

_KEY = ["chain", "beta", "beta_over_lambda", "q"]


def run_to_end(sweep: SweepRun) -> int:
    """Run a sweep; if its space has a search, run rounds until the search has ended.

    Returns:
        0 if all trials are done, else 1.

    Raises:
        SacpoError: see `SweepRun.run`; or the search needs a library that is not installed.
    """
    space = sweep.plan.space
    if space.search is None:
        return sweep.run()
    from sacpo.cluster.searcher import PolicySearcher

    searcher = PolicySearcher(space, sweep.plan.proposals)
    console = Console(width=160, highlight=False, markup=False)
    status: int | None = None
    while True:
        new = _suggestions(searcher)
        for proposal in new:
            console.print(f"search: {proposal.label} ({proposal.reason})")
        if not new and status is not None:
            console.print(f"search: ended after {searcher.known.spent()} trainings: {ending(searcher.known)}")
            return status
        if new:
            plan = make_plan(space, bool(sweep.plan.canaries), proposals=searcher.known.proposals)
            sweep = replace(sweep, plan=with_added_judges(plan, sweep.plan))
        status = sweep.run()
        results = load_folder(sweep.location.folder)
        if (results.trials["status"] == "pending").any():  # stopped, or the store could not be used
            return status
        for trial_id, result, is_failed in trial_results(results):
            searcher.on_trial_complete(trial_id, result, is_failed)
        sweep = replace(sweep, kept=find_kept(sweep.location))


def _suggestions(searcher: PolicySearcher) -> list[Proposal]:
    """All policies that the searcher proposes from the results so far."""
    number = before = len(searcher.known.proposals)
    while isinstance(searcher.suggest(f"proposal-{number}"), dict):
        number += 1
    new: list[Proposal] = searcher.known.proposals[before:]
    return new


def trial_results(results: Results) -> list[tuple[str, dict[str, Any], bool]]:
    """Each policy's id, its result for the searcher, and whether it failed. Seeds are averaged.

    Args:
        results: The tables of a sweep whose trials have all ended.
    """
    trials = results.trials
    criteria = [name for name in results.sweep.space["evaluation"] if name in trials.columns]
    is_searched = trials["method"].isin(["one-step", "sacpo", "p-sacpo"])
    policies = trials[is_searched & trials["combination"].isin(["", LINEAR.text])]
    previews = results.comparisons.get("preview", pd.DataFrame({"chain": [], "beta": []}))
    paths = {key: _path(rows, criteria) for key, rows in previews.groupby(["chain", "beta"], sort=False)}
    answers = []
    for _, rows in policies.groupby(_KEY, sort=False, dropna=False):
        done = rows[rows["status"] == "done"]
        first = rows.iloc[0]
        result: dict[str, Any] = {name: None if pd.isna(first[name]) else first[name] for name in _KEY}
        result |= {name: float(done[name].mean()) for name in criteria}
        result["satisfied"] = "constraint" in rows and bool((rows["constraint"] == "satisfied").all())
        result["paths"] = [path for key, path in paths.items() if key == (first["chain"], first["beta"])]
        answers.append((str(first["trial_id"]), result, done.empty))
    return answers


def _path(rows: pd.DataFrame, criteria: Sequence[str]) -> dict[str, Any]:
    """The preview of a path, averaged over seeds."""
    means = rows.groupby("lambda")[[column for name in criteria for column in (name, f"{name}_low")]].mean()
    return {
        "chain": rows["chain"].iloc[0],
        "beta": float(rows["beta"].iloc[0]),
        "lambdas": np.asarray(means.index, dtype=float).tolist(),
        "value": {name: means[name].tolist() for name in criteria},
        "low": {name: means[f"{name}_low"].tolist() for name in criteria},
    }
