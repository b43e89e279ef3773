"""Extends a sweep: a changed space in a new results folder, on the same store, so that only the difference is run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sacpo.errors import SacpoError
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.results.kept_plan import KeptSweep, find_kept, kept_proposals, plan_differences, refusal
from sacpo.runs.search_run import run_to_end
from sacpo.runs.sweep_run import SweepRun
from sacpo.spaces.space import Space
from sacpo.store.backends import LocalBackend
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import Store


@dataclass(frozen=True)
class Extension:
    """A sweep that shares the store of another one.

    Attributes:
        before: The plan of the other sweep.
        plan: The new plan.
        store: The store of both.
        location: The new results folder.
        kept: The sweep in that folder, if the extension was run before.
    """

    before: Plan
    plan: Plan
    store: Store
    location: ResultsLocation
    kept: KeptSweep | None

    def describe(self) -> str:
        """The differences in settings, trials and work, as text."""
        settings = list(dict.fromkeys(plan_differences(self.before, self.plan)))
        before, after = ({trial.label for trial in plan.trials} for plan in (self.before, self.plan))
        done = self.store.records(self.plan.steps)
        missing = [step for step in self.plan.steps.values() if step.id not in done]
        trainings = sum(step.kind == "train" for step in missing)
        return "\n".join(
            [
                "settings:",
                *(f"  {line}" for line in settings),
                f"trials: {len(after - before)} new, {len(after & before)} as before, {len(before - after)} left out",
                *(f"  + {trial.label}" for trial in self.plan.trials if trial.label not in before),
                *(f"  - {trial.label}" for trial in self.before.trials if trial.label not in after),
                f"steps to run: {len(missing)} of {len(self.plan.steps)}, {trainings} of them trainings",
                f"results: {self.location.uri}; store: {self.store.uri}",
            ]
        )

    def run(self, address: str, command: Sequence[str], max_workers: int) -> int:
        """Carry out the steps that the store lacks; returns the exit status of a sweep."""
        return run_to_end(SweepRun(self.plan, self.store, self.location, self.kept, address, command, max_workers))


def extend(kept: KeptSweep, location: ResultsLocation, space: Space, results: str | None) -> Extension:
    """Plan an extension.

    Args:
        kept: The sweep that is extended.
        location: Its results folder.
        space: The changed space.
        results: The new results folder; None for the first of NAME-2, NAME-3, ... that is new or holds this extension.

    Raises:
        SacpoError: the space changes nothing, the facts of the sweep are missing, or the new folder cannot be used.
    """
    if kept.facts is None:
        raise SacpoError(f"{location.uri}: its first run was stopped before it wrote its facts; run the sweep first")
    canaries = kept.facts.canaries == "run"
    if _plan(space, canaries, kept).plan_id == kept.plan.plan_id:
        raise SacpoError(
            "the space is the one of the results folder, so there is nothing to extend; change a setting with --set, "
            "or give a changed file with --space; a search goes on with more trainings by its own command"
        )
    store = Store(location.resolve(kept.facts.store))
    target = ResultsLocation(results) if results is not None else _next_folder(location, space, canaries)
    there = find_kept(target)
    plan = _plan(space, canaries, there)
    if there is not None and (problem := refusal(there.plan, plan, target, store.uri)):
        raise SacpoError(problem)
    return Extension(kept.plan, plan, store, target, there)


def _plan(space: Space, canaries: bool, kept: KeptSweep | None) -> Plan:
    """The plan of a space in a results folder, which may have proposals of the space's search."""
    return make_plan(space, canaries, proposals=kept_proposals(kept, space))


def _next_folder(location: ResultsLocation, space: Space, canaries: bool) -> ResultsLocation:
    if not isinstance(location.files, LocalBackend):
        raise SacpoError("--results: is required if the sweep's own results are in a bucket")
    folder = Path(location.uri)
    for number in itertools.count(2):
        target = ResultsLocation(folder.with_name(f"{folder.name}-{number}"))
        kept = find_kept(target)
        if kept is None or kept.plan.plan_id == _plan(space, canaries, kept).plan_id:
            return target
    raise AssertionError("count() does not end")
