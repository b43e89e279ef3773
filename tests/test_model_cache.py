"""Models stay loaded for later steps of a process, and only while their files are the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from sacpo.data.model_cache import MODEL_CACHE, ModelCache
from sacpo.judges import scalar
from sacpo.spaces.model_loading import Loading
from sacpo.steps import policies
from sacpo.steps.model import world_tokenizer
from tests.jobs import policy
from tests.test_packing import tiny


def written(folder: Path, size: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(b"0" * size)
    return folder


def test_the_cache_keeps_what_was_used_last_within_its_limit(tmp_path: Path) -> None:
    cache = ModelCache(limit=100)
    loaded: list[str] = []
    folders = {name: written(tmp_path / name, size) for name, size in {"a": 40, "b": 50, "c": 30, "large": 101}.items()}

    def use(name: str, settings: str = "", pinned: bool = False) -> None:
        assert cache.get([folders[name]], settings, lambda: loaded.append(name) or name, pinned=pinned) == name

    for name in ("a", "b", "a", "c", "a"):  # c takes the room of b
        use(name)
    assert loaded == ["a", "b", "c"]
    use("b")
    assert loaded == ["a", "b", "c", "b"]
    use("b", "other settings")
    use("large")
    use("large")
    use("large", pinned=True)
    use("large", pinned=True)
    assert loaded[4:] == ["b", "large", "large", "large"]
    cache.clear()
    use("large", pinned=True)
    assert loaded[8:] == ["large"]


def test_changed_files_are_another_model(tmp_path: Path) -> None:
    cache, loaded = ModelCache(limit=100), list[int]()
    folder = written(tmp_path / "a", 5)
    weights = folder / "weights"
    for change in (lambda: None, lambda: os.utime(weights, (1, 1)), lambda: written(folder, 6)):
        change()
        for _ in range(2):
            cache.get([folder], "", lambda: loaded.append(1))
    assert len(loaded) == 3


def test_policies_and_judges_are_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    for owner, name in ((policies, "_load"), (AutoModelForSequenceClassification, "from_pretrained")):
        usual = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, usual=usual, **o: loads.append(a) or usual(*a, **o))
    MODEL_CACHE.clear()
    folders = [policy(tmp_path / str(seed), seed=seed) for seed in (0, 1)]
    first, second, again = (policies.load_policy({"policy": folder})[0] for folder in (*folders, folders[0]))
    assert first is again is not second
    assert len(loads) == 2
    eager = policies.load_policy({"policy": folders[0]}, loading=Loading(attn_implementation="eager"))[0]
    assert eager is not first
    ends = {"first": folders[0], "second": folders[1]}
    assert policies.load_policy(ends, 0.5)[0] is policies.load_policy(ends, 0.5)[0]
    assert policies.load_policy(ends, 0.5)[0] is not policies.load_policy(ends, 0.25)[0]
    judge = tmp_path / "judge"
    tokenizer = world_tokenizer()
    tiny("llama", AutoModelForSequenceClassification, num_labels=1).save_pretrained(judge)
    tokenizer.save_pretrained(judge)
    loads.clear()
    pairs = [("a", "b"), ("c", "d")]
    scores = [
        scalar.reward_model(judge, revision=None, sign=sign, template="{prompt} {response}", max_length=9)(pairs)
        for sign in (1, -1)
    ]
    assert scores[0] == [-score for score in scores[1]]
    assert len(loads) == 1
