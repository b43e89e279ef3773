"""Human labels: the corrected win rate, the exported sheet, and labels read back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sacpo import judge
from sacpo.errors import DataError
from sacpo.results.labels import human_tables, label_sheet, read_labels
from sacpo.statistics.human import prediction_powered
from tests.commands import call


def simulated(seed: int, n: int = 200, others: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, and scores of a judge that is biased and agrees with 80 % of them."""
    rng = np.random.default_rng(seed)
    human = rng.random(n + others) < 0.5
    judged = (rng.random(human.size) < np.where(human, 0.9, 0.3)).astype(float)
    return human[:n].astype(float), judged[:n], judged[n:]


def test_the_estimate_is_that_of_ppi_python() -> None:
    ppi_py = pytest.importorskip("ppi_py")
    for seed in range(3):
        labels, judged, elsewhere = simulated(seed)
        estimate = prediction_powered(labels, judged, elsewhere)
        point = ppi_py.ppi_mean_pointestimate(labels, judged, elsewhere)
        low, high = ppi_py.ppi_mean_ci(labels, judged, elsewhere, alpha=0.05)
        assert estimate.rate.value == pytest.approx(float(np.squeeze(point)), abs=1e-3)
        assert (estimate.rate.low, estimate.rate.high) == pytest.approx((float(low[0]), float(high[0])), abs=3e-3)


def test_a_biased_judge_shortens_the_interval_and_does_not_shift_it() -> None:
    labels, judged, elsewhere = simulated(1)
    estimate = prediction_powered(labels, judged, elsewhere)
    assert elsewhere.mean() > 0.57
    assert estimate.rate.low < 0.5 < estimate.rate.high
    alone = prediction_powered(labels, judged, [])
    assert (alone.weight, alone.rate.n_prompts) == (0, 200)
    assert estimate.rate.high - estimate.rate.low < 0.87 * (alone.rate.high - alone.rate.low)
    noise = np.random.default_rng(2).random(2200)
    assert prediction_powered(labels, noise[:200], noise[200:]).weight < 0.2
    assert prediction_powered(np.ones(30), np.ones(30), np.zeros(9)).rate.low < 1
    with pytest.raises(ValueError, match="two labelled"):
        prediction_powered([1.0], [1.0], [])


def tables(prompts: int = 60, policies: int = 3) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Trials, answers and verdicts; a policy's answer says whether a person prefers it."""
    rng = np.random.default_rng(0)
    names = ["sft", *(f"policy{i}" for i in range(policies)), "always-refuse"]
    methods = ["sft", *["sacpo"] * policies, "sentinel"]
    trials = pd.DataFrame({"trial_id": names, "label": names, "method": methods, "status": "done"})
    rows = [{"trial_id": name, "criterion": "helpfulness", "prompt_id": f"p{i}", "category": "abb"[i % 3], "sample": 0,
             "prompt": f"question {i}", "response": "plain" if name == "sft" else rng.choice(["good", "bad"])}
            for name in names for i in range(prompts)]  # fmt: skip
    responses = pd.DataFrame(rows)
    verdicts = responses[responses["trial_id"] != "sft"].assign(baseline_id="sft", panel="")
    good = verdicts["response"].eq("good") ^ (rng.random(len(verdicts)) < 0.2)
    return trials, responses, verdicts.assign(outcome=np.where(good, "win", "loss"))


def labelled(sheet: pd.DataFrame) -> pd.DataFrame:
    """The sheet as a person who prefers good answers to plain ones, and these to bad ones, fills it in."""
    worth = {"good": 2, "plain": 1, "bad": 0}
    a, b = (sheet[side].map(worth) for side in ("answer_a", "answer_b"))
    return sheet.assign(label=np.select([a > b, a < b], ["A", "b "], "Tie"))


def test_the_sheet_is_blinded_balanced_and_the_same_again() -> None:
    trials, responses, _ = tables()
    sheet = label_sheet(trials, responses, 90)
    assert list(sheet.columns) == ["id", "criterion", "prompt", "answer_a", "answer_b", "label"]
    assert not sheet.astype(str).apply(lambda column: column.str.contains("policy|refuse|sft")).any().any()
    assert sheet.equals(label_sheet(trials, responses, 90))
    assert 25 < sheet["answer_a"].eq("plain").sum() < 65
    whole = label_sheet(trials, responses, 10_000)
    assert len(whole) == 180
    chosen = read_back(labelled(sheet), trials, responses)
    assert chosen.groupby("trial_id").size().tolist() == [30, 30, 30]
    category = chosen["prompt_id"].str[1:].astype(int) % 3 == 0
    assert category.groupby(chosen["trial_id"]).sum().tolist() == [10, 10, 10]


def read_back(sheet: pd.DataFrame, trials: pd.DataFrame, responses: pd.DataFrame) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.csv"
        sheet.to_csv(path, index=False)
        return read_labels(path, trials, responses)


def test_labels_turn_back_into_scores_of_the_policy_and_correct_its_win_rate() -> None:
    trials, responses, verdicts = tables()
    labels = read_back(labelled(label_sheet(trials, responses, 90)), trials, responses)
    answers = responses.set_index(["trial_id", "prompt_id"])["response"]
    given = answers.loc[list(zip(labels["trial_id"], labels["prompt_id"], strict=True))].to_numpy()
    assert (labels["score"].to_numpy() == (given == "good")).all()
    estimate = human_tables(trials, verdicts, labels)
    (of_judge,) = estimate["human_judges"].to_dict("records")
    assert (of_judge["labels"], of_judge["judge"]) == (90, "main")
    assert of_judge["raw"] == pytest.approx(0.8, abs=0.1)
    assert of_judge["bias_low"] < of_judge["bias"] < of_judge["bias_high"]
    human = estimate["human"].set_index("trial_id")
    for trial in ("policy0", "policy1", "policy2"):
        truth = responses.query("trial_id == @trial")["response"].eq("good").mean()
        assert human.loc[trial, "low"] < truth < human.loc[trial, "high"]
        assert human.loc[trial, "labelled_prompts"] == 30
    assert np.isnan(human.loc["always-refuse", "corrected"])
    assert "at least 20" in human.loc["always-refuse", "reason"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "first"}, "labels must be A, B or tie, not 'first'"),
        ({"label": ""}, "no row has a label"),
        ({"id": "0"}, "are of no pair of answers"),
    ],
)
def test_files_that_are_no_labels_are_refused(change: dict[str, str], message: str) -> None:
    trials, responses, _ = tables()
    sheet = labelled(label_sheet(trials, responses, 30)).assign(**change)
    with pytest.raises(DataError, match=message):
        read_back(sheet, trials, responses)


def test_the_command_exports_and_reads_labels(copied: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    answer = call(judge.main, str(copied), "--export-for-labels", "40", "--output", str(sheet))
    assert answer.returncode == 0, answer.stderr
    assert call(judge.main, str(copied), "--export-for-labels", "40", "--output", str(sheet)).returncode == 2
    table = pd.read_csv(sheet, dtype=str, keep_default_na=False)
    table.assign(label=table["label"].replace("", "A")).to_csv(sheet, index=False)
    answer = call(judge.main, str(copied), "--labels", str(sheet))
    assert answer.returncode == 0, answer.stderr
    assert "agrees with" in answer.stdout
    assert "Human labels" in (copied / "report.html").read_text()
