"""The report as one HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacpo.reporting.formats import finite_or_none, number_text
from sacpo.reporting.interactive import HOVER_COLUMNS, draw_front_interactive
from sacpo.reporting.series import WIN_RATES
from sacpo.reporting.tables import sections
from sacpo.results.sweep_facts import SweepFacts

if TYPE_CHECKING:
    from sacpo.results.load import Results

_SAMPLES = 3  # prompts of each criterion whose answers are shown


def write_html(results: Results, path: Path) -> None:
    """Write the report as one page that loads nothing from elsewhere; its Content-Security-Policy forbids it.

    Args:
        results: The tables. Text in them (answers, labels, errors) is escaped.
        path: The HTML file to write.
    """
    import plotly.io
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sacpo.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number_text, "finite_or_none": finite_or_none}
    figure = plotly.io.to_html(
        draw_front_interactive(results.trials, results.exact),
        full_html=False,
        include_plotlyjs=True,
        config={"displaylogo": False, "responsive": True},
        div_id="front",
    )
    extra = [
        column
        for column in ("p_front", "p_best", "share_of_optimum", "support_mass")
        if column in results.trials and results.trials[column].notna().any()
    ]
    page = environment.get_template("report.html.j2").render(
        sweep=results.sweep,
        space=json.dumps(results.sweep.space, indent=2, ensure_ascii=False),
        trials=results.trials.assign(on_front=results.trials["on_front"].eq(True)).to_dict("records"),
        steps=results.steps.to_dict("records"),
        samples=_samples(results),
        sections=sections(results),
        front=figure,
        criteria=WIN_RATES,
        extra={column: HOVER_COLUMNS[column] for column in extra},
        two_panels=results.exact is not None,
        origin=_origin(results.sweep),
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


def _samples(results: Results) -> list[dict[str, Any]]:
    """For each trial but the baseline, its answers to the first prompts of each criterion and the baseline's."""
    first = results.responses.drop_duplicates(["trial_id", "criterion", "prompt_id"])
    by_trial = {trial: rows.to_dict("records") for trial, rows in first.groupby("trial_id")}
    outcomes = results.verdicts.groupby(["trial_id", "criterion", "prompt_id"])["outcome"].agg(list).to_dict()
    baselines = results.trials.loc[results.trials["method"] == "sft", "trial_id"]
    baseline = {(row["criterion"], row["prompt_id"]): row for trial in baselines for row in by_trial.get(trial, [])}
    samples = []
    for trial in results.trials.to_dict("records"):
        if trial["method"] == "sft":
            continue
        pairs: list[dict[str, Any]] = []
        for criterion in WIN_RATES:
            answers = [row for row in by_trial.get(trial["trial_id"], []) if row["criterion"] == criterion][:_SAMPLES]
            for answer in answers:
                key = (criterion, answer["prompt_id"])
                verdicts = outcomes.get((trial["trial_id"], *key), [])
                pairs.append({"answer": answer, "baseline": baseline.get(key), "verdicts": verdicts})
        if pairs:
            samples.append({"label": trial["label"], "pairs": pairs})
    return samples
