"""Writes the plot and the page of a results folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sacpo.errors import StoreError
from sacpo.reporting.curves import draw_curves
from sacpo.reporting.page import write_html
from sacpo.reporting.plots import draw_front

if TYPE_CHECKING:
    from sacpo.results.load import Results


def write_report(results: Results, folder: Path) -> None:
    """Write `pareto.png`, `report.html` and, if a stage was trained, `curves.png` into a results folder, atomically.

    Raises:
        StoreError: a file cannot be written.
    """
    with _replacing(folder / "pareto.png") as path:
        draw_front(results.trials, results.exact, path)
    curves = results.comparisons.get("curves")
    if curves is not None and len(curves):
        with _replacing(folder / "curves.png") as path:
            draw_curves(curves, path)
    with _replacing(folder / "report.html") as path:
        write_html(results, path)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path whose file replaces `path` at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
