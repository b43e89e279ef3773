"""analysis/study.py: tables and pictures of a study, from its CSV files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from tests.spaces import ROOT

FIRST, SECOND = "dpo:helpfulness", "dpo:helpfulness>dpo:harmlessness"


def trial(label: str, method: str, chain: str | None, win_rate: float, **more: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"label": label, "method": method, "chain": chain, "status": "done", "on_front": True}
    for name in ("helpfulness", "harmlessness"):
        row |= {name: win_rate, f"{name}_low": win_rate - 0.1, f"{name}_high": win_rate + 0.1}
    settings = {"beta": 0.1, "beta_over_lambda": None, "lambda": None, "q": None, "seed": 0, "kl_to_sft": 1.0}
    return row | settings | {"mean_response_tokens": 20.0, "finished_fraction": 0.5} | more


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("study", ROOT / "analysis" / "study.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CSV files of a small study: the model, stage 1, lambda = 1 and 4, and a merge a quarter of the way to 4."""
    trials = [
        trial("sft", "sft", None, 0.5),
        trial("one", "one-step", FIRST, 0.6),
        trial("four", "sacpo", SECOND, 0.7, beta_over_lambda=0.025, **{"lambda": 4.0}),
        trial("lone", "sacpo", SECOND, 0.65, beta_over_lambda=0.1, **{"lambda": 1.0}),
        trial("quarter", "p-sacpo", SECOND, 0.64, beta_over_lambda=0.025, q=0.25, **{"lambda": 4.0}),
    ]
    preview = [
        {"lambda": at, **{k: v for k, v in trial("", "", "", 0.5 + at / 10).items() if "ness" in k}} for at in (0, 1, 4)
    ]
    judge = dict.fromkeys(("held_out_accuracy", "held_out_low", "held_out_high", "calibration_error"), 0.66)
    judge |= dict.fromkeys(("canary_win_rate", "canary_low", "canary_high"), 0.8) | {"held_out_pairs": 90}
    judge |= dict.fromkeys(("fooled_fraction", "fooled_low", "fooled_high"), 0.1)
    scales = {"score": 0.6, "p_win": 0.55, "score_half_width": 0.04, "p_win_half_width": 0.01}
    length = {"criterion": "helpfulness", "label": "one", "length_controlled": 0.58, "low": 0.5, "high": 0.6}
    train = {"kind": "train", "label": "train one", "seconds": 100.0, "tokens": 900.0, "computing_seconds": 90.0}
    update = {"step_id": "s", "label": "train one", "update": 1, "loss": 0.69, "reward_accuracy": 0.5, "margin": 0.1}
    update |= dict.fromkeys(
        ("chosen_logp_change", "rejected_logp_change", "kl", "grad_norm", "learning_rate", "token_accuracy"), 0.1
    )
    files: dict[str, list[dict[str, Any]]] = {
        "trials": trials,
        "preview": preview,
        "judges": [{"criterion": "helpfulness", **judge}],
        "verdicts": [{"criterion": "helpfulness", "label": "one", **scales}],
        "length": [length],
        "steps": [{**train, "padding": 0.05}],
        "curves": [update, update | {"update": 2, "loss": 0.6}],
        "answers": [{"prompt": "Hi?", "sft": "a|b", "one": "Hello\n\nyou", "four": "No.", "lone": "Hm."}],
    }
    for name, rows in files.items():
        pd.DataFrame(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "choice.txt").write_text("none qualifies\n")
    return tmp_path


def test_tables_and_pictures_of_a_study(study: ModuleType, folder: Path) -> None:
    tables = study.tables(folder)
    assert "| `four` | 4 | 0.700 (0.600-0.800) | 0.700 (0.600-0.800) | 1.00 | 20.0 | 50% | ★ |" in tables["Policies"]
    # Every policy stands at the lambda that it reaches: a merge at q times that of its second parent.
    reached = [line.split(" | ")[:2] for line in tables["Ways to a λ"].splitlines()[2:]]
    assert reached == [["| one-step ", "0"], ["| sacpo ", "1"], ["| p-sacpo q=0.25", "1"], ["| sacpo ", "4"]]
    assert [line[:6] for line in tables["Preview"].splitlines()[2:]] == ["| 0 | ", "| 1 | ", "| 4 | "]
    assert "| 1 | 0.600 (0.500-0.700) | 0.650 (0.550-0.750) |" in tables["Preview"]
    assert "| 0.600 ± 0.040 | 0.550 ± 0.010 | 0.580 (0.500-0.600) |" in tables["Counted in other ways"]
    assert "| train | 1 | 100 | 10 | 5.0% |" in tables["Costs"]
    assert "| Hi? | a¦b | Hello / you | Hm. | No. |" in tables["Answers"]
    study.draw(folder)
    assert all((folder / f"{name}.png").stat().st_size > 10_000 for name in ("front", "preview", "curves"))


def test_the_page_has_the_tables_of_the_files(study: ModuleType) -> None:
    page = (ROOT / "docs" / "study-smollm2.md").read_text()
    tables = study.tables(ROOT / "analysis" / "study_smollm2")
    assert [heading for heading, table in tables.items() if table not in page] == []
