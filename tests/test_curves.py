"""The training curves of a sweep: the table, and its picture."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pandas as pd

from sacpo import report
from sacpo.reporting.curves import draw_curves
from sacpo.reporting.write import FORMS
from sacpo.results import load
from sacpo.results.curves import CURVES
from tests.commands import call


def test_every_stage_has_a_row_for_each_update_and_ends_where_its_metrics_say(in_process_results: Path) -> None:
    results = load(in_process_results)
    curves = results.comparisons["curves"].set_index("step_id")
    trained = results.steps.query("kind == 'train' and status == 'done'")
    assert set(curves.index) == set(trained["step_id"])
    for step in trained.to_dict("records"):
        metrics, curve = json.loads(step["metrics"]), curves.loc[step["step_id"]]
        assert list(curve["update"]) == list(range(1, metrics["updates"] + 1))
        assert curve["loss"].iloc[0] == metrics["first_loss"]
        last = curve.tail(min(max(10, len(curve) // 20), (len(curve) + 1) // 2))
        for column in ("margin", "chosen_logp_change", "reward_accuracy"):
            expected = np.nan if metrics[column] is None else metrics[column]
            np.testing.assert_allclose(last[column].mean(), expected, rtol=1e-9)
        assert (curve["grad_norm"] > 0).all()
        assert (curve["learning_rate"] >= 0).all()
    assert curves[list(CURVES)].dtypes.eq("float64").all()


def test_a_damaged_log_is_no_curve_and_the_report_draws_the_others(copied: Path) -> None:
    before = load(copied).comparisons["curves"]
    damaged = before["step_id"].iloc[0]
    history = next(copied.glob(f"store/steps/{damaged}/output-*/history.json"))
    history.write_text(history.read_text().replace("loss", "lost"))
    (copied / "curves.png").unlink()
    assert call(report.main, str(copied)).returncode == 0
    after = load(copied).comparisons["curves"]
    assert set(before["step_id"]) - set(after["step_id"]) == {damaged}
    assert (copied / "curves.png").stat().st_size > 10_000
    assert all((copied / f"curves.{form}").stat().st_size > 10_000 for form in FORMS)
    assert base64.b64encode((copied / "curves.png").read_bytes()).decode() in (copied / "report.html").read_text()


def test_each_value_that_was_logged_has_a_panel_and_the_loss_of_sft_one_of_its_own(in_process_results: Path) -> None:
    curves = load(in_process_results).comparisons["curves"]

    def panels(table: pd.DataFrame) -> dict[str, int]:
        return {axes.get_title(loc="left"): len(axes.lines) for axes in draw_curves(table).axes if axes.axison}

    stages = {"loss": 2, "loss of SFT, nats per token": 1}
    assert stages.items() <= panels(curves).items()
    assert len(panels(curves)) == 5
    assert "KTO's estimate of the KL divergence, nats" in panels(curves.assign(kl=0.1))
    assert set(panels(curves[curves["label"] == "sft"])) == {"loss of SFT, nats per token"}


def test_two_judges_have_lines_that_differ(in_process_results: Path) -> None:
    curves = load(in_process_results).comparisons["curves"]
    curves = pd.concat(
        curves[curves["step_id"] == curves["step_id"].iloc[-1]].assign(step_id=label, label=label)
        for label in ("judge helpfulness", "judge harmlessness")
    )
    first, second = draw_curves(curves).axes[0].lines[:2]
    assert first.get_color() != second.get_color()
