"""Merges beyond linear: the same weights as mergekit's own pipeline, ends, random entries, plans, LoRA, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from sacpo import export, results
from sacpo.errors import SpaceError, StepError
from sacpo.planning.planner import make_plan
from sacpo.reporting.series import all_series
from sacpo.runs import sweep_run
from sacpo.spaces.merging import LINEAR, Combination, Dare, Slerp
from sacpo.steps.policies import full_policy
from tests.commands import call, sweep_here, write_space
from tests.jobs import policy
from tests.spaces import small, space

CHAIN = {"chain": "dpo:helpfulness>dpo:harmlessness", "beta": 2.0, "beta_over_lambda": 2.0}
LAST = "dpo:helpfulness@2>dpo:harmlessness@2"
KINDS: list[dict[str, Any]] = [
    {"kind": "linear"},
    {"kind": "slerp"},
    {"kind": "ties", "density": 0.4},
    {"kind": "dare", "density": 0.4},
    {"kind": "dare", "density": 0.4, "elect_signs": True},
]
NAMES = ["linear", "slerp", "ties density=0.4", "dare density=0.4", "dare density=0.4 elect_signs=true"]


def combination(data: dict[str, Any]) -> Combination:
    result: Combination = TypeAdapter(Combination).validate_python(data)
    return result


def three(folder: Path, dtype: str) -> dict[str, Path]:
    return {role: policy(folder / role, seed=i, dtype=dtype) for i, role in enumerate(("first", "second", "origin"))}


def weights(parents: dict[str, Path], q: float, how: Combination) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = full_policy(parents, q, how).state_dict()
    return state


def every_second(probabilities: torch.Tensor) -> torch.Tensor:
    """In place of random entries: the same ones whoever draws them."""
    return (torch.arange(probabilities.numel()) % 2).reshape(probabilities.shape).to(probabilities)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merges_are_those_of_mergekits_own_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    parents = three(tmp_path, dtype)
    monkeypatch.setattr(torch, "bernoulli", every_second)
    seen = []
    for number, data in enumerate(KINDS):
        how = combination(data)
        text = json.dumps(how.recipe(0.3) | {"dtype": "float32", "out_dtype": dtype})
        for role, folder in parents.items():  # mergekit keeps files that it has read, by the name of the model
            text = text.replace(f'"{role}"', json.dumps(str(folder)))
        options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
        run_merge(MergeConfiguration.model_validate_json(text), str(tmp_path / f"out{number}"), options)
        theirs, ours = load_file(tmp_path / f"out{number}" / "model.safetensors"), weights(parents, 0.3, how)
        for name, tensor in theirs.items():  # mergekit's linear divides by the sum of the weights
            rtol = 0 if how != LINEAR else 1e-2 if dtype == "bfloat16" else 1e-6
            torch.testing.assert_close(ours[name], tensor, atol=1e-7 if rtol else 0, rtol=rtol)
        seen.append(ours["model.embed_tokens.weight"])
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i]), "each is a merge of its own"


@pytest.mark.parametrize("data", [{"kind": "slerp"}, {"kind": "ties", "density": 1}, {"kind": "dare", "density": 1}])
def test_the_ends_are_the_parents_where_nothing_is_trimmed(tmp_path: Path, data: dict[str, Any]) -> None:
    parents, how = three(tmp_path, "float32"), combination(data)
    for q, role in ((0.0, "first"), (1.0, "second")):
        expected, near = load_file(parents[role] / "model.safetensors"), abs(q - 1e-7)
        end, beside = weights(parents, q, how), weights(parents, near, how)
        for name, tensor in expected.items():
            assert torch.equal(end[name], tensor)
            torch.testing.assert_close(beside[name], tensor, atol=1e-5, rtol=0)  # no jump at the end


def test_dare_keeps_entries_by_its_seed_and_divides_them_by_the_density(tmp_path: Path) -> None:
    parents, name = three(tmp_path, "float32"), "model.embed_tokens.weight"
    first, origin = (load_file(parents[role] / "model.safetensors")[name] for role in ("first", "origin"))
    once, again, other = (weights(parents, 0.0, Dare(kind="dare", density=0.5, seed=s))[name] for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    kept = (once - origin).abs() > 1e-9
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close((once - origin)[kept], (first - origin)[kept] / 0.5)
    dense, linear = weights(parents, 0.3, Dare(kind="dare", density=1)), weights(parents, 0.3, LINEAR)
    torch.testing.assert_close(dense[name], linear[name])


def test_other_shapes_are_refused_with_the_way_out(tmp_path: Path) -> None:
    parents = {"first": policy(tmp_path / "a"), "second": policy(tmp_path / "b", hidden_size=32)}
    with pytest.raises(StepError, match=r"in one parent.*trained from one model, with one vocabulary"):
        full_policy(parents, 0.5, Slerp(kind="slerp"))


# ------------------------------------------------------------------------------------------------ spaces, plans, tables


def test_each_kind_is_a_trial_of_its_own_and_linear_ones_keep_their_ids() -> None:
    merges = [{"method": "p-sacpo", **CHAIN, "q": [0.25, 0.5], "combination": KINDS}]
    plan = make_plan(space(merges=merges))
    trials = [trial for trial in plan.trials if trial.is_merge]
    assert [trial.combination.text for trial in trials] == [name for name in NAMES for _ in range(2)]
    assert len({trial.trial_id for trial in trials}) == len(trials)
    assert trials[5].label == f"p-sacpo ties density=0.4 q=0.5 ({LAST})"
    sft = plan.baseline.policy["policy"]
    assert [trial.policy.get("origin") for trial in trials] == [None] * 4 + [sft] * 6
    plain = make_plan(space(merges=[{"method": "p-sacpo", **CHAIN, "q": [0.25, 0.5]}]))
    assert [t for t in plain.trials if t.is_merge] == trials[:2]
    seeds = [Dare(kind="dare", density=0.4, seed=s) for s in (0, 1)]
    assert [how.text for how in seeds] == ["dare density=0.4", "dare density=0.4 seed=1"]


@pytest.mark.parametrize(
    ("combination", "message"),
    [
        ({"kind": "ties"}, r"merges.0.combination.*density"),
        ({"kind": "dare", "density": 0}, r"density.*greater than 0"),
        ({"kind": "slerp", "density": 0.5}, r"density"),
        ({"kind": "spherical"}, r"linear.*slerp.*ties.*dare"),
    ],
)
def test_wrong_combinations_are_refused(combination: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space(merges=[{"method": "p-sacpo", **CHAIN, "q": 0.5, "combination": combination}])


def test_a_missing_mergekit_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small(merges=[{"method": "p-sacpo", **CHAIN, "q": 0.5, "combination": {"kind": "slerp"}}])
    monkeypatch.setattr(sweep_run, "find_spec", lambda name: None)
    answer = sweep_here(write_space(data, tmp_path), tmp_path / "results")
    assert answer.returncode == 2
    assert "pip install 'sacpo[mergekit]', or leave combination out" in answer.stderr
    assert not (tmp_path / "results").exists()


def test_a_sweep_of_merges_has_them_side_by_side_and_exports_them(copied: Path, tmp_path: Path) -> None:
    """On the store of a sweep that has trained the parents."""
    merges = [{"method": "p-sacpo", **CHAIN, "q": 0.5, "combination": KINDS[:4]}]
    data, folder = small(merges=merges, evaluation__sentinels=[]), tmp_path / "merges"
    answer = sweep_here(write_space(data, tmp_path), folder, "--store", str(copied / "store"))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    loaded = results.load(folder)
    rows = loaded.trials.set_index("label")
    merged = rows[rows["method"] == "p-sacpo"]
    assert list(merged["combination"]) == NAMES[:4]
    assert merged["expected_safety"].nunique() == 4
    names = [series.name for series in all_series(loaded.trials)]
    assert "P-SACPO by ties density=0.4: dpo:helpfulness → dpo:harmlessness" in names
    assert "P-SACPO: dpo:helpfulness → dpo:harmlessness" in names
    out = tmp_path / "policy"
    label = f"p-sacpo ties density=0.4 q=0.5 ({LAST})"
    assert call(export.main, str(folder), label, str(out)).returncode == 0
    recipe = json.loads((out / "mergekit.yaml").read_text())
    assert (recipe["merge_method"], recipe["base_model"], recipe["out_dtype"]) == ("ties", "origin", "float32")
    card = (out / "README.md").read_text()
    assert '- `origin`: `sacpo export RESULTS "sft" origin`' in card
    assert "merged by `ties density=0.4` with weights 0.5 and 0.5" in card
