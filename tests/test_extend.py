"""`sacpo extend` and `sacpo diff`: a changed space beside the sweep that it came from."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from sacpo import diff, extend
from sacpo.results import load
from sacpo.results.kept_plan import find_kept
from sacpo.results.sweep_difference import difference
from sacpo.store.results_location import ResultsLocation
from tests.commands import call
from tests.results_folders import snapshot

CHANGE = ("--set", "chains.0.beta_over_lambda=[1.0]")


def test_only_the_difference_is_run_in_a_new_folder(copied: Path, tmp_path: Path) -> None:
    before = {name: facts for name, facts in snapshot(copied).items() if not name.startswith("store")}
    shown = call(extend.main, str(copied), *CHANGE, "--dry-run").stdout
    assert "chains.0.beta_over_lambda.0.0: 2.0 in the results folder, 1.0 in this space" in shown
    assert "  + dpo:helpfulness@2>dpo:harmlessness@1" in shown
    assert "  - dpo:helpfulness@2>dpo:harmlessness@2" in shown
    assert ", 1 of them trainings" in shown
    assert not copied.with_name("results-2").exists()

    answer = call(extend.main, str(copied), *CHANGE, "--address", "in-process")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    new = copied.with_name("results-2")
    steps = load(new).steps
    assert (~steps["reused"] & steps["kind"].eq("train")).sum() == 1
    assert {name: facts for name, facts in snapshot(copied).items() if not name.startswith("store")} == before

    again = call(extend.main, str(copied), *CHANGE, "--address", "in-process")  # continues in the same folder
    assert again.returncode == 0
    assert "steps to run: 0 of" in again.stdout
    assert not copied.with_name("results-3").exists()

    text = call(diff.main, str(copied), str(new), "--csv", str(tmp_path / "diff.csv"))
    assert text.returncode == 0, text.stderr
    assert "done in the second sweep only: dpo:helpfulness@2>dpo:harmlessness@1" in text.stdout
    table = pd.read_csv(tmp_path / "diff.csv")
    common = table[table["label"] == "dpo:helpfulness@2"]  # one policy in both: no difference
    assert list(common["difference"]) == [0.0, 0.0]
    assert (common["n_prompts"] > 0).all()


def test_a_difference_is_paired_and_names_what_cannot_be_compared(copied: Path) -> None:
    first = load(copied)
    verdicts = first.verdicts.copy()
    label = first.trials.query("method != 'sft' and status == 'done'").iloc[0]
    own = verdicts["trial_id"].eq(label["trial_id"]) & verdicts["criterion"].eq("helpfulness")
    verdicts.loc[own, ["outcome", "score"]] = ["win", 1.0]
    verdicts["judge"] = "another"
    second = type(first)(**(vars(first) | {"verdicts": verdicts}))
    compared = difference(first, second)
    row = compared.trials.query("label == @label['label'] and criterion == 'helpfulness'").iloc[0]
    scores = first.verdicts[own]["score"]
    expected = 1 - scores.groupby(first.verdicts[own]["prompt_id"]).mean().mean()
    assert row["difference"] == pytest.approx(expected)
    assert row["low"] <= expected <= row["high"]
    others = compared.trials[compared.trials["label"] != label["label"]]
    assert (others["difference"] == 0).all()
    assert len(compared.notes) == compared.trials["criterion"].nunique()
    assert "another" in compared.notes[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "nothing to extend"),
        (("--set", "chains.0.betta=1"), "chains.0.betta: unknown setting; did you mean beta?"),
        ((*CHANGE, "--results", "OTHER"), "holds the results of another sweep"),
    ],
)
def test_what_cannot_be_extended_is_refused(
    copied: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    answer = call(extend.main, str(copied), *(str(copied) if a == "OTHER" else a for a in arguments))
    assert answer.returncode == 2
    assert expected in answer.stderr
    assert call(extend.main, str(tmp_path / "nothing"), *CHANGE).returncode == 2
    assert find_kept(ResultsLocation(tmp_path / "nothing")) is None
