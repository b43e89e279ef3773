"""Builds the tables of a results folder again from its store, and writes its plot and page."""

from __future__ import annotations

from pathlib import Path

from sacpo.errors import StoreError
from sacpo.planning.plan import Plan
from sacpo.reporting.write import write_picture, write_report
from sacpo.results.collect import complete
from sacpo.results.kept_plan import read_kept_plan
from sacpo.results.load import Results, load_folder
from sacpo.results.sweep_facts import SweepFacts, read_facts
from sacpo.results.write import write_results
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import Store


def rebuild_report(location: ResultsLocation, picture: Path | None = None) -> str | None:
    """Write the tables, `pareto.png` and `report.html` of a results folder again.

    Args:
        location: The results folder.
        picture: Where the picture of the front is written too.

    Returns:
        The reason why the tables were left as they were, if the store cannot be used or lacks steps that they were made
        of. The plot and the page are then made from the existing tables.

    Raises:
        SacpoError: it is not a results folder.
        StoreError: the folder cannot be written.
    """
    folder = location.fetch()
    problem: str | None = None
    try:
        results = _rebuild_tables(location, folder)
    except StoreError as error:
        problem = str(error)
        results = load_folder(folder)
    write_report(results, folder)
    if picture is not None:
        write_picture(results, picture)
    location.publish()
    return problem


def _rebuild_tables(location: ResultsLocation, folder: Path) -> Results:
    facts, plan = read_facts(folder), read_kept_plan(folder)
    results = complete(plan, open_store(location, facts), facts)
    write_results(results, plan, folder)
    return results


def open_store(location: ResultsLocation, facts: SweepFacts) -> Store:
    """The store of a results folder, from where the folder is now.

    Raises:
        StoreError: there is no such store, or it cannot be read.
    """
    store = Store(location.resolve(facts.store))
    if not store.exists():
        raise StoreError(f"there is no store at {store.uri}, where the steps of this sweep were kept")
    return store


def missing_steps(plan: Plan, store: Store, step_ids: list[str]) -> list[str]:
    """Labels of the steps that a store does not have."""
    done = store.records(step_ids)
    return [plan.steps[step_id].label for step_id in step_ids if step_id not in done]
