"""`sacpo sweep --status`: the sweeps of a store, or of all results folders here, as text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from sacpo.errors import SacpoError
from sacpo.results.sweep_facts import read_facts
from sacpo.store.results_location import DEFAULT_RESULTS, ResultsLocation
from sacpo.store.step_store import Store
from sacpo.store.sweep_registry import SweepStatus, sweeps


def status_text(results: str | None, store: str | None) -> str:
    """One line for each run of a sweep.

    Args:
        results: A results folder, whose store is asked; None for all folders in `results/`.
        store: URI of a store, which is asked instead.

    Raises:
        SacpoError: no sweep has run there.
        StoreError: the store cannot be read.
    """
    if store is not None:
        uris = [store]
    elif results is not None:
        uris = list(_store_of(ResultsLocation(results)))
    else:
        folders = [path for path in sorted(DEFAULT_RESULTS.glob("*")) if path.is_dir()]
        uris = [uri for folder in folders for uri in _store_of(ResultsLocation(folder))]
    if not uris:
        raise SacpoError(
            f"--status: no sweep has run in {results or DEFAULT_RESULTS}; "
            "give a results folder, or a store with --store"
        )
    return _table(status for uri in dict.fromkeys(uris) for status in sweeps(Store(uri)))


def _store_of(location: ResultsLocation) -> Iterator[str]:
    """URI of the store of a results folder; nothing if no sweep has run in it."""
    folder = location.fetch()
    try:
        yield location.resolve(read_facts(folder).store)
    except SacpoError:  # the facts are missing or damaged; the store may be there
        if Store(location.default_store).exists():
            yield location.default_store


def _table(statuses: Iterable[SweepStatus]) -> str:
    lines = [f"{'started':16}  {'state':8}  {'steps':>11}  {'trials':>6}  sweep"]
    for status in statuses:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.started_at))
        progress = f"{status.done} of {status.steps}"
        lines.append(
            f"{started:16}  {status.state:8}  {progress:>11}  {status.trials:>6}  {status.name} ({status.results})"
        )
    return "\n".join(lines)
