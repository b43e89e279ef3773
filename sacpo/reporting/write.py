"""Writes the plot and the page of a results folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sacpo.errors import SacpoError, StoreError
from sacpo.reporting.curves import draw_curves
from sacpo.reporting.page import write_html
from sacpo.reporting.plots import FORMS, draw_front, save_figure

if TYPE_CHECKING:
    from sacpo.results.load import Results


def write_report(results: Results, folder: Path) -> None:
    """Write `pareto`, if a stage was trained `curves` (both PNG, SVG, PDF), and `report.html` into a results folder.

    Each file is written atomically.

    Raises:
        StoreError: a file cannot be written.
    """
    figures = {"pareto": draw_front(results)}
    curves = results.comparisons.get("curves")
    if curves is not None and len(curves):
        figures["curves"] = draw_curves(curves)
    for name, figure in figures.items():
        for form in FORMS:
            with _replacing(folder / f"{name}.{form}") as path:
                save_figure(figure, path, form)
    picture = (folder / "curves.png").read_bytes() if "curves" in figures else b""
    with _replacing(folder / "report.html") as path:
        write_html(results, path, picture)


def write_picture(results: Results, path: Path) -> None:
    """Write the front as a picture, in the form that the file's suffix names.

    Raises:
        SacpoError: the suffix names no form.
        StoreError: the file cannot be written.
    """
    form = path.suffix.removeprefix(".")
    if form not in FORMS:
        raise SacpoError(f"--picture {path}: must end in .{', .'.join(FORMS)}")
    with _replacing(path) as temporary:
        save_figure(draw_front(results), temporary, form)


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
