"""`sacpo export --push`, and what a model card takes from the card of the model that training started from."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pandas as pd
import pytest

from sacpo import export
from sacpo.spaces.space import PretrainedModel
from sacpo.steps.model import card_of
from tests.commands import call

CARD = "---\nlicense: llama2\nbase_model: meta/base\n---\n# A model\n"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (CARD, {"license": "llama2", "base_model": "meta/base"}),
        ("# No front matter\n", {}),
        ("---\nbase_model: [a/b, c/d]\n---\n", {}),
        (None, {}),
    ],
)
def test_licence_and_base_model_come_from_the_models_folder(tmp_path: Path, card: str | None, expected: Any) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert card_of(PretrainedModel(kind="pretrained", path=str(tmp_path), prompt_template="chat")) == expected


def test_an_export_is_pushed_by_the_hubs_client(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's two requests are replaced; they get the whole folder, whose card has the recorded licence."""
    steps = pd.read_parquet(copied / "steps.parquet")
    recorded = {"parameters": 1, "vocabulary": 1, "license": "llama2", "base_model": "meta/base"}
    steps.loc[steps["kind"] == "model", "metrics"] = json.dumps(recorded)
    steps.to_parquet(copied / "steps.parquet")
    pushed = {}

    def create_repo(api: Any, repo_id: str, **options: Any) -> Any:
        assert options == {"private": True, "exist_ok": True}
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(api: Any, *, repo_id: str, folder_path: Path, **options: Any) -> None:
        pushed[repo_id] = {path.name: path.read_bytes() for path in folder_path.iterdir()}

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    answer = call(export.main, str(copied), "dpo:helpfulness@2", str(tmp_path / "out"), "--push", "me/policy")
    assert answer.returncode == 0, answer.stderr
    assert {"model.safetensors", "config.json", "README.md"} <= set(pushed["me/policy"])
    assert b'license: "llama2"\nbase_model: "meta/base"\n---' in pushed["me/policy"]["README.md"]


def test_a_hub_that_cannot_be_reached_leaves_the_folder_and_says_the_way_out(copied: Path, tmp_path: Path) -> None:
    """The tests are offline."""
    out = tmp_path / "out"
    answer = call(export.main, str(copied), "dpo:helpfulness@2", str(out), "--push", "me/policy")
    assert answer.returncode == 2
    assert f"`hf upload me/policy {out}`" in answer.stderr
    assert (out / "README.md").exists()
