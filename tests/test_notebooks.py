"""Every notebook of analysis/ runs on results; plots draw on the axes that they are given; a PDF embeds its fonts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest
from matplotlib.figure import Figure

from sacpo import plots
from sacpo.errors import SacpoError
from sacpo.reporting.new_axes import add_legend, axes_or_new
from sacpo.results import Results, load
from sacpo.results.sweep_difference import difference
from tests.spaces import ROOT

NOTEBOOKS = sorted((ROOT / "analysis").glob("*.ipynb"))


@pytest.fixture(scope="module")
def sweep(in_process_results: Path) -> Results:
    return load(in_process_results)


@pytest.fixture(autouse=True)
def _no_window() -> Any:
    matplotlib.use("agg")
    yield
    plt.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_committed_without_outputs(
    path: Path, in_process_results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which takes less time than a kernel for each."""
    monkeypatch.setenv("SACPO_RESULTS", str(in_process_results))
    monkeypatch.setenv("SACPO_OTHER_RESULTS", str(in_process_results))
    monkeypatch.chdir(path.parent)
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    names: dict[str, Any] = {"__name__": path.stem}
    for number, cell in enumerate(cells):
        assert not cell.outputs
        exec(compile(cell.source, f"{path.name}, code cell {number}", "exec"), names)
    assert any(isinstance(value, Figure) or hasattr(value, "figure") for value in names.values()), "it draws"


def test_every_notebook_is_listed_in_the_documentation() -> None:
    text = (ROOT / "docs" / "results.md").read_text()
    assert set(re.findall(r"analysis/(\w+\.ipynb)", text)) == {path.name for path in NOTEBOOKS}


def test_plots_draw_on_the_given_axes_alone(sweep: Results) -> None:
    figure = Figure()
    panels = list(figure.subplots(2, 4).flat)
    draw = [
        lambda ax: plots.plot_front(sweep, ax),
        lambda ax: plots.plot_exact(sweep, ax),
        lambda ax: plots.plot_trials(sweep.trials, ax),
        lambda ax: plots.plot_path(sweep, ax, "helpfulness"),
        lambda ax: plots.plot_training(sweep, ax, "margin"),
        lambda ax: plots.plot_judges(sweep, ax),
        lambda ax: plots.plot_difference(difference(sweep, sweep), ax),
    ]
    for function, axes in zip(draw, panels, strict=False):
        assert function(axes) is axes
        assert axes.has_data()
    assert not panels[-1].has_data()
    assert not plt.get_fignums()


def test_a_path_has_its_policies_at_their_lambda(sweep: Results) -> None:
    axes = plots.plot_path(sweep, criterion="harmlessness")
    (figure,) = plt.get_fignums()
    assert axes.figure.number == figure
    trials = sweep.trials.set_index("label")
    first, last = "dpo:helpfulness@2", "dpo:helpfulness@2>dpo:harmlessness@2"
    expected = {(0.0, trials.loc[first, "harmlessness"]), (1.0, trials.loc[last, "harmlessness"])}
    points = {tuple(point) for container in axes.containers for point in container.lines[0].get_xydata()}
    assert expected <= points
    assert any(x == 0.5 for x, _ in points)  # the merge


def test_a_legend_is_never_wider_than_its_figure() -> None:
    for letters, columns in ((2, 2), (40, 1)):
        axes = axes_or_new(None, (3.5, 4))
        for letter in "ab":
            axes.plot([0, 1], label=letter * letters)
        add_legend(axes, is_new=True)
        (legend,) = axes.figure.legends
        axes.figure.draw_without_rendering()
        assert axes.figure.bbox.containsx(legend.get_window_extent().x0)
        left, right = (text.get_window_extent().x0 for text in legend.get_texts())
        assert (left < right) == (columns == 2)


def test_a_pdf_for_a_paper_has_its_fonts_embedded(sweep: Results, tmp_path: Path) -> None:
    axes = plots.plot_judges(sweep)
    for number in (1, 2):
        plots.save(axes, tmp_path / f"{number}.pdf")
    content = (tmp_path / "1.pdf").read_bytes()
    assert content == (tmp_path / "2.pdf").read_bytes()
    assert b"/FontFile2" in content
    assert b"/Type3" not in content
    plots.save(axes, tmp_path / "a.png", dpi=50)
    with pytest.raises(SacpoError, match=r"must end in \.png, \.svg, \.pdf"):
        plots.save(axes, tmp_path / "a.jpg")


def test_what_cannot_be_drawn_is_named(sweep: Results) -> None:
    with pytest.raises(SacpoError, match="criterion 'honesty': the sweep has helpfulness, harmlessness"):
        plots.plot_path(sweep, criterion="honesty")
    with pytest.raises(SacpoError, match="has loss, "):
        plots.plot_training(sweep, column="losses")


def test_a_sweep_that_has_no_tables_yet_is_named(sweep: Results, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(sweep.sweep.to_json())
    with pytest.raises(SacpoError, match=r"not written tables yet: missing: trials\.parquet, steps\.parquet"):
        load(tmp_path)
