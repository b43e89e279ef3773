"""The report as one HTML page."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacpo.reporting.formats import finite_or_none, number_text
from sacpo.reporting.page_data import HOVER_COLUMNS, as_script, empty_reason, page_data
from sacpo.reporting.series import WIN_RATES
from sacpo.reporting.tables import sections
from sacpo.results.sweep_facts import SweepFacts

if TYPE_CHECKING:
    from sacpo.results.load import Results

_COLUMNS = ("p_front", "p_best", "share_of_optimum", "support_mass")  # of the trials' table, where there are numbers


def write_html(results: Results, path: Path, curves: bytes = b"") -> None:
    """Write the report as one page that loads nothing from elsewhere; its Content-Security-Policy forbids it.

    Args:
        results: The tables. Text in them (answers, labels, errors) is escaped.
        path: The HTML file to write.
        curves: The picture of the training curves, a PNG; empty if it is not to be on the page.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sacpo.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number_text, "finite_or_none": finite_or_none}
    trials = results.trials
    extra = [column for column in _COLUMNS if column in trials and trials[column].notna().any()]
    data = page_data(results)
    volume = results.comparisons.get("hypervolume")
    page = environment.get_template("report.html.j2").render(
        sweep=results.sweep,
        space=json.dumps(results.sweep.space, indent=2, ensure_ascii=False),
        trials=trials.assign(on_front=trials["on_front"].eq(True)).to_dict("records"),
        steps=results.steps.to_dict("records"),
        sections=sections(results),
        curves=base64.b64encode(curves).decode(),
        criteria=WIN_RATES,
        extra={column: HOVER_COLUMNS[column] for column in extra},
        has_constraint="constraint" in trials and bool(trials["constraint"].astype(bool).any()),
        empty=empty_reason(trials),
        volume=None if volume is None or volume.empty else volume.iloc[0].to_dict(),
        origin=_origin(results.sweep),
        data=as_script(data),
        planes=data["planes"],
        constraints=data["constraints"] if data["choice"] else [],
        bounds_scores=any(c.get("measure") == "mean_score" for c in results.sweep.space.get("constraint", [])),
        objective=data["objective"],
        answered=[trial for trial in data["trials"] if trial["id"] in data["answers"]],
        asked=list(data["prompts"]),
    )
    path.write_text(page, encoding="utf-8")


def _origin(facts: SweepFacts) -> dict[str, Any]:
    """Versions and origin of the results, by the latest run."""
    origin: dict[str, Any] = {"plan": facts.plan_id, "store": facts.store}
    if facts.runs:
        run = facts.runs[-1]
        origin |= run.versions
        origin |= {"commit": run.git_commit, "address": run.address, "command": " ".join(run.command)}
    return origin
