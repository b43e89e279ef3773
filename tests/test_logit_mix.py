"""Two policies that answer together: exact probabilities, caches, rows beside retraining and merges, the export."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sacpo import export
from sacpo.data.prompts import Prompt
from sacpo.planning.payloads import GeneratePayload
from sacpo.planning.planner import make_plan
from sacpo.results.exact import objective_weights
from sacpo.spaces.evaluation import Generation
from sacpo.steps.engines import batched
from sacpo.steps.logit_mix import LogitMix
from sacpo.steps.policies import load_policy
from sacpo.steps.probabilities import answer_probabilities
from sacpo.synthetic.world import PROMPTS
from tests.commands import call, sweep_here, write_space
from tests.jobs import policy
from tests.spaces import small, space

CHAIN = {"chain": "dpo:helpfulness>dpo:harmlessness", "beta": 2.0, "beta_over_lambda": 2.0}
MERGES = [{"method": method, **CHAIN, "q": [0.0, 0.5, 1.0]} for method in ("p-sacpo", "logit-mix")]
LAST = "dpo:helpfulness@2>dpo:harmlessness@2"
PROMPT_IDS = [[1, 4], [1, 5, 6], [1, 7, 8, 9]]  # of different lengths: batches are padded


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random policies, the second of which is not sure of anything else than the first."""
    folder = tmp_path_factory.mktemp("policies")
    return {role: policy(folder / role, seed=seed) for seed, role in enumerate(("mixed_first", "mixed_second"))}


def logits(model: LogitMix, ids: list[int]) -> torch.Tensor:
    """Logits of the next token without any cache."""
    result: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0, -1]
    return result


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3])
def test_greedy_answers_are_those_of_the_mixture_without_caches(parents: dict[str, Path], batch_size: int) -> None:
    model, tokenizer = load_policy(parents, 0.4)
    settings = Generation(max_new_tokens=5, batch_size=batch_size)
    answers, _ = batched(model, tokenizer, PROMPT_IDS, settings)
    for prompt, answer in zip(PROMPT_IDS, answers, strict=True):
        ids = list(prompt)
        for token in answer:
            assert token == int(logits(model, ids).argmax())
            ids.append(token)
            if token in model.generation_config.eos_token_id:
                break


@torch.no_grad()
def test_samples_have_the_temperature_of_the_mixture(parents: dict[str, Path]) -> None:
    model, tokenizer = load_policy(parents, 0.4)
    settings = Generation(max_new_tokens=1, temperature=0.5, batch_size=4000)
    answers, _ = batched(model, tokenizer, [[1, 4]] * 4000, settings)
    expected = (logits(model, [1, 4]) / 0.5).softmax(-1).numpy()
    shares = np.bincount([answer[0] for answer in answers], minlength=len(expected)) / 4000
    assert np.abs(shares - expected).max() < 5 * (expected.max() / 4000) ** 0.5


def test_each_token_has_the_normalised_geometric_mean_and_the_ends_are_the_policies(parents: dict[str, Path]) -> None:
    first, second = (load_policy({"policy": folder})[0] for folder in parents.values())
    mix, tokenizer = load_policy(parents, 0.4)
    one, two, both = (model(input_ids=torch.tensor([[1, 4, 9]])).logits.softmax(-1) for model in (first, second, mix))
    mean = one**0.6 * two**0.4
    torch.testing.assert_close(both, mean / mean.sum(-1, keepdim=True))
    for q, model in ((0.0, first), (1.0, second)):
        exact = answer_probabilities(LogitMix(first, second, q), tokenizer)
        assert np.allclose(exact, answer_probabilities(model, tokenizer))


def test_retraining_a_merge_and_a_mixture_are_rows_side_by_side(tmp_path: Path) -> None:
    data = small(merges=MERGES, evaluation__sentinels=[])
    answer = sweep_here(write_space(data, tmp_path), tmp_path / "results", "--skip-canaries")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    rows = pd.read_csv(tmp_path / "results" / "trials.csv").set_index("label")
    assert set(rows["method"]) == {"sft", "one-step", "sacpo", "p-sacpo", "logit-mix"}
    mix, merge = (rows.loc[f"{method} q=0.5 ({LAST})"] for method in ("logit-mix", "p-sacpo"))
    assert mix["expected_safety"] != merge["expected_safety"]
    assert mix["expected_reward"] == pytest.approx(merge["expected_reward"], abs=0.2)
    for q, label in ((0, "dpo:helpfulness@2"), (1, LAST)):
        for column in ("expected_reward", "expected_safety", "kl_to_sft", "helpfulness", "harmlessness"):
            assert rows.loc[f"logit-mix q={q} ({LAST})", column] == pytest.approx(rows.loc[label, column], abs=1e-6)
    out = tmp_path / "policy"
    assert call(export.main, str(tmp_path / "results"), f"logit-mix q=0.5 ({LAST})", str(out)).returncode == 0
    command = [sys.executable, "generate.py", PROMPTS[0][0]]
    told = subprocess.run(command, capture_output=True, text=True, cwd=out, timeout=120, check=True).stdout.strip()
    model, tokenizer = load_policy({"mixed_first": out / "first", "mixed_second": out / "second"}, 0.5)
    ids = tokenizer(PROMPTS[0][0] + " ")["input_ids"]
    (expected,), _ = batched(model, tokenizer, [ids], Generation(max_new_tokens=16))
    assert told == tokenizer.decode(expected, skip_special_tokens=True)
    assert "p1^0.5 x p2^0.5" in (out / "README.md").read_text()


def test_a_mixture_is_a_policy_of_its_own_in_the_plan() -> None:
    plan = make_plan(space(merges=MERGES))
    trials = [trial for trial in plan.trials if trial.method in ("p-sacpo", "logit-mix")]
    assert len({trial.trial_id for trial in trials}) == 6
    merge, mix = (next(t for t in trials if t.method == method and t.q == 0.5) for method in ("p-sacpo", "logit-mix"))
    assert list(mix.policy) == ["mixed_first", "mixed_second"]
    assert list(mix.policy.values()) == list(merge.policy.values()), "nothing is trained for it"
    assert mix.generate.keys() == merge.generate.keys()
    assert not set(mix.generate.values()) & set(merge.generate.values())
    assert objective_weights(mix) is None
    assert isinstance(plan.steps[mix.generate["helpfulness"]].payload, GeneratePayload)
    assert all(isinstance(prompt, Prompt) for prompt in plan.prompts["helpfulness"])
