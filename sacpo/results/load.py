"""Reads the tables of a results folder. Neither the store nor the plan is needed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sacpo.errors import SacpoError
from sacpo.results.sweep_facts import SweepFacts, read_facts
from sacpo.store.results_location import ResultsLocation

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("trials", "steps", "responses", "verdicts")
"""Tables that every results folder has."""
OPTIONAL_TABLES = (
    "exact",
    "differences",
    "categories",
    "length",
    "seeds",
    "judges",
    "undecided",
    "panel",
    "agreement",
    "ranking",
    "front",
    "hypervolume",
    "choice",
    "curves",
    "preview",
    "human",
    "human_judges",
)
"""Tables that are written when a sweep has ended, if they have rows."""


@dataclass(frozen=True)
class Results:
    """The results of a sweep.

    Attributes:
        sweep: The content of `sweep.json`.
        trials: One row for each trial.
        steps: One row for each step.
        responses: One row for each answer.
        verdicts: One row for each judge call.
        exact: The synthetic world's exact frontier, one row for each beta and lambda; None for other spaces.
        comparisons: The tables over all trials together and the training curves, by name; empty while the sweep runs.
    """

    sweep: SweepFacts
    trials: pd.DataFrame
    steps: pd.DataFrame
    responses: pd.DataFrame
    verdicts: pd.DataFrame
    exact: pd.DataFrame | None
    comparisons: dict[str, pd.DataFrame] = field(default_factory=dict)


def load(folder: str | Path) -> Results:
    """Read a results folder, at a path or a bucket's URI.

    Raises:
        SacpoError: it is not a results folder.
        StoreError: the bucket cannot be read.
    """
    return load_folder(ResultsLocation(folder).fetch())


def load_folder(folder: Path) -> Results:
    """The same for a folder on this machine."""
    import pandas as pd  # takes half a second, which `sacpo sweep --dry-run` does without

    facts = read_facts(folder)
    missing = [f"{name}.parquet" for name in TABLES if not (folder / f"{name}.parquet").exists()]
    if missing:
        raise SacpoError(
            f"{folder} is not a results folder, or its sweep has not written tables yet: missing: {', '.join(missing)}"
        )
    tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}
    paths = {name: folder / f"{name}.parquet" for name in OPTIONAL_TABLES}
    optional = {name: pd.read_parquet(path) for name, path in paths.items() if path.exists()}
    return Results(facts, **tables, exact=optional.pop("exact", None), comparisons=optional)
