"""The preview: the curve over lambda from answers that are there, its steps, its table and its picture."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from sacpo.data.prompts import Prompt
from sacpo.errors import SpaceError
from sacpo.execution.artifacts import LIKELIHOODS, RESPONSES
from sacpo.planning.metrics import ReferenceMetrics
from sacpo.planning.payloads import GeneratePayload, LikelihoodsPayload
from sacpo.planning.planner import make_plan
from sacpo.planning.preview import families
from sacpo.reporting.page_data import page_data
from sacpo.reporting.plots import draw_front
from sacpo.reporting.preview_text import preview_lines
from sacpo.results import load
from sacpo.results.preview import expected_lambda, gold_samples
from sacpo.spaces.constraints import Constraint
from sacpo.spaces.evaluation import Generation
from sacpo.statistics.preview import ScoredAnswers, Trained, crossing, stones_between
from sacpo.steps import generate, likelihoods
from sacpo.steps.policies import load_policy
from sacpo.store.step_store import Store
from sacpo.synthetic.world import PROMPTS, SAFETY, SENTENCES, extremes, optimum
from tests.benchmarks.choice import draw
from tests.jobs import job, policy
from tests.spaces import space

BETA, LARGEST = 2.0, 2.0
SFT = np.full(SAFETY.shape, 1 / SAFETY.shape[1])
ENDS = [optimum(SFT, 1 / BETA, 0.0), optimum(SFT, 1 / BETA, LARGEST / BETA)]


def everything(trained: tuple[Trained, ...] = (), shift: float = 0.0) -> ScoredAnswers:
    """Each end "gives" the same many draws; a third policy's answers score higher than the path by `shift`."""
    policies = [*ENDS, optimum(SFT, 1 / BETA, 1 / BETA)] if trained else ENDS
    answers = draw(policies, 60, np.random.default_rng(0), trained)
    return ScoredAnswers(
        answers.logps, answers.source, answers.prompt, answers.score + shift * (answers.source == 2), trained=trained
    )


def expected(q: float) -> float:
    return float((optimum(SFT, 1 / BETA, q * LARGEST / BETA) * SAFETY).sum(axis=1).mean())


def test_the_curve_is_that_of_the_exact_path_and_its_band_holds_it() -> None:
    q = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    curve = everything().curve(q)
    truth = np.array([expected(point) for point in q])
    assert curve.value == pytest.approx(truth, abs=0.1)
    assert (curve.low < curve.value).all()
    assert (curve.value < curve.high).all()
    assert curve.shares.sum(axis=1) == pytest.approx(1.0)
    assert curve.shares[0, 0] > 0.5 > curve.shares[-1, 0]
    assert (curve.effective > 10).all()


def test_the_slope_is_the_variance_over_beta_for_optimal_policies() -> None:
    answers = everything()
    slope = answers.moments([0.5]).slopes.mean() / LARGEST
    policy_there = optimum(SFT, 1 / BETA, 0.5 * LARGEST / BETA)
    mean = (policy_there * SAFETY).sum(axis=1, keepdims=True)
    variance = (policy_there * (SAFETY - mean) ** 2).sum(axis=1).mean()
    assert slope == pytest.approx(variance / BETA, rel=0.1)
    near = answers.moments([0.49, 0.51]).means.mean(axis=0)
    assert slope * LARGEST == pytest.approx((near[1] - near[0]) / 0.02, rel=1e-3)


def test_lambda_is_found_within_the_bracket_only() -> None:
    answers = everything()
    assert answers.root(expected(0.4)) == pytest.approx(0.4, abs=0.03)
    assert answers.root(expected(0.0) - 1) == 0.0
    assert np.isnan(answers.root(expected(1.0) + 1))
    assert crossing([0, 1, 2], [0.0, 1.0, 1.5], 1.25) == 1.5
    assert np.isnan(crossing([0, 1], [0.0, 1.0], 2.0))


def test_a_policy_trained_off_the_path_moves_the_curve_and_one_on_it_does_not() -> None:
    path = everything((Trained(2, 0.5),))
    assert path.curve([0.5]).value == pytest.approx(path.moments([0.5]).means.mean(axis=0))
    off = everything((Trained(2, 0.5),), shift=2.0)
    own = off.score[off.source == 2].mean()
    assert off.curve([0.5]).value[0] == pytest.approx(own, abs=0.02)
    assert off.curve([0.0, 1.0]).value == pytest.approx(off.moments([0.0, 1.0]).means.mean(axis=0))


def test_answers_of_a_stone_carry_the_middle_of_a_long_path() -> None:
    far = [optimum(SFT, 0.0, 0.0), optimum(SFT, 0.0, 6.0)]
    stone = optimum(SFT, 0.0, 3.0)
    rng = np.random.default_rng(0)
    without, with_stone = draw(far, 8, rng), draw([*far, stone], 8, rng)
    (*_, near), (*_, apart) = max(with_stone.distances(), key=lambda d: d[2]), max(without.distances())
    assert near < apart / 2
    assert with_stone.curve([0.5]).shares[0, 2] > 0.4
    assert with_stone.curve([0.5]).effective[0] > 1.5 * without.curve([0.5]).effective[0]
    assert [stones_between(nats) for nats in (1, 4, 15, 30)] == [0, 0, 1, 2]


@pytest.mark.parametrize("change", [{"score": np.array([np.nan, 1.0])}, {"prompt": np.array([0])}])
def test_answers_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    values = {"logps": np.zeros((2, 2)), "source": np.array([0, 1]), "prompt": np.array([0, 0]), "score": np.ones(2)}
    with pytest.raises(ValueError, match=r"preview|shape"):
        ScoredAnswers(**(values | change))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation__generation__temperature": 0.7}, r"temperature: is 0.7.*generation.temperature to 1"),
        ({"evaluation__generation__top_p": 0.9}, r"top_p: is 0.9, but `preview` needs plain samples"),
        ({"evaluation__generation__samples": 1}, r"samples: is 1, but `preview`"),
        ({"preview": {"stones": [1.0]}}, "less than 1"),
    ],
)  # fmt: skip
def test_a_preview_that_cannot_be_made_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space(**({"preview": {}} | changes))


def test_the_plan_has_one_step_for_each_policy_of_a_family_and_the_same_work_without() -> None:
    grid = [{"chain": "dpo:helpfulness>dpo:harmlessness", "beta": 2.0, "beta_over_lambda": [4.0, 1.0]}]
    plain = make_plan(space(chains=grid, merges=[], preview=None))
    plan = make_plan(space(chains=grid, merges=[], preview={}))
    assert plan.plan_id == plain.plan_id  # so that a finished sweep's folder can get a preview
    (family,) = families(plan.trials)
    assert [trial.kl_parameters for trial in family.members] == [(2.0,), (2.0, 1.0), (2.0, 4.0)]
    assert family.position(family.trained[0]) == 0.25
    assert len(plan.steps) - len(plain.steps) == 3
    for trial in family.members:
        step = trial.likelihoods[family.key]
        assert step in plan.target_steps(trial)
        assert step not in trial.steps
    with_stones = make_plan(space(chains=grid, merges=[], preview={"stones": [0.5]}))
    (family,) = families(with_stones.trials)
    assert [(trial.method, trial.q) for trial in family.stones] == [("p-sacpo", 0.5)]


def test_a_preview_without_a_path_is_a_note() -> None:
    plan = make_plan(space(chains=[{"chain": "dpo:helpfulness", "beta": 2.0}], merges=[], preview={}))
    assert "preview has nothing to estimate, since no chain of this space has two stages" in plan.notes


def test_a_step_gives_the_log_probability_of_the_tokens_that_were_generated(tmp_path: Path) -> None:
    """Computed again one answer at a time by transformers' own loss."""
    sources = [policy(tmp_path / f"policy{seed}", seed=seed) for seed in (0, 1)]
    prompts = [Prompt(str(i), text, "") for i, text in enumerate(SENTENCES[:3])]
    payload = GeneratePayload(
        generation=Generation(max_new_tokens=6, temperature=1.0, samples=2),
        prompts="prompts-0",
        prompt_template="{prompt} ",
    )
    generate.run(job(tmp_path / "answers", "generate", payload, {"policy": sources[0]}, prompts))
    rows = pq.read_table(tmp_path / "answers" / RESPONSES).to_pylist()
    assert [len(row["answer_ids"]) for row in rows] == [row["tokens"] for row in rows]
    parents = {"policy": sources[1], "answers0": tmp_path / "answers"}
    task = job(tmp_path / "out", "likelihoods", LikelihoodsPayload(prompt_template="{prompt} "), parents)
    object.__setattr__(task.step, "parents", {"answers0": "generate-0"})
    likelihoods.run(task)
    table = pq.read_table(tmp_path / "out" / LIKELIHOODS).to_pandas()
    assert table[["answers", "row"]].to_numpy().tolist() == [["generate-0", i] for i in range(6)]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(sources[1]), load_policy({"policy": sources[1]})[1]
    for row, logp in zip(rows, table["logp"], strict=True):
        prompt = tokenizer(row["prompt"] + " ")["input_ids"]
        ids = torch.tensor([prompt + row["answer_ids"]])
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < len(prompt), -100)
        assert -float(model(input_ids=ids, labels=labels).loss.detach()) * row["tokens"] == pytest.approx(
            logp, rel=1e-4
        )


def test_a_policy_that_joins_adds_its_own_pairs_only(tmp_path: Path) -> None:
    own = policy(tmp_path / "policy")
    payload = GeneratePayload(generation=Generation(max_new_tokens=4), prompts="prompts-0", prompt_template="{prompt} ")
    for seed in range(3):
        prompts = [Prompt(str(i), text, "") for i, text in enumerate(SENTENCES[: 2 + seed])]
        generate.run(job(tmp_path / f"answers{seed}", "generate", payload, {"policy": own}, prompts))
    store = Store(tmp_path / "store")

    def computed(answers: list[int], policy_id: str = "train-0") -> tuple[int, pd.DataFrame]:
        """How many answers the step computed, and its table."""
        folders = {f"answers{k}": tmp_path / f"answers{seed}" for k, seed in enumerate(answers)}
        task = job(tmp_path / "out", "likelihoods", LikelihoodsPayload(prompt_template="{prompt} "), folders)
        ids = {f"answers{k}": f"generate-{seed}" for k, seed in enumerate(answers)}
        task = replace(task, parents={"policy": own, **folders}, store=store)
        object.__setattr__(task.step, "parents", {"policy": policy_id, **ids})
        metrics = likelihoods.run(task).metrics
        assert isinstance(metrics, ReferenceMetrics)
        return metrics.examples, pq.read_table(tmp_path / "out" / LIKELIHOODS).to_pandas()

    assert computed([0, 1])[0] == 2 + 3
    count, joined = computed([1, 2, 0])
    assert count == 4
    assert joined["answers"].unique().tolist() == ["generate-1", "generate-2", "generate-0"]
    assert computed([0, 1, 2], "train-1")[0] == 2 + 3 + 4
    damaged, short = sorted(tmp_path.glob("store/likelihoods/generate-[12]/*"), key=str)[::2]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    shutil.copy(next(tmp_path.glob("store/likelihoods/generate-0/*")), short)
    again = [computed([1, 2, 0], f"train-{number}") for number in (0, 1)]
    assert sum(count for count, _ in again) == 3 + 4
    for _, table in again:
        pd.testing.assert_frame_equal(table, joined, rtol=1e-5)


def test_a_sweep_writes_the_table_and_draws_the_line(in_process_results: Path) -> None:
    results = load(in_process_results)
    table = results.comparisons["preview"]
    assert set(table["verdicts"]) == {"outcomes"}
    assert table["lambda"].iloc[[0, -1]].tolist() == [0.0, 1.0]
    assert table["policies"].eq(3).all()  # stage 1, stage 2 and the merge with q = 0.5
    for name in ("helpfulness", "harmlessness"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()
    for name in ("expected_reward", "expected_safety"):  # no answer of so small a model is one of the world's
        assert table[[name, f"{name}_low", f"{name}_high"]].isna().all(axis=None)
        assert table[f"{name}_exact"].notna().all()
    name = "preview: dpo:helpfulness → dpo:harmlessness, β=2, λ up to 1"
    drawn = [name in axes.get_legend_handles_labels()[1] for axes in draw_front(results).axes]
    assert drawn == [True, False]
    curves = [[c for c in plane["curves"] if c["name"] == name] for plane in page_data(results)["planes"]]
    assert [(len(c["points"]), len(c["bars"])) for c in curves[0]] == [(41, 6)]
    assert curves[1] == []


def test_gold_values_are_those_of_the_worlds_own_answers() -> None:
    prompt = PROMPTS[0][0]
    responses = [*extremes(prompt, "harmlessness"), "a text of another kind"]
    answers = pd.DataFrame({"step": "generate-0", "row": range(3), "prompt": prompt, "response": responses})
    samples = gold_samples(pd.concat([answers, answers]))  # prompts of two criteria that are the same
    assert sorted(samples["expected_safety"]["score"]) == [SAFETY[0].min(), SAFETY[0].max()]
    assert len(samples["expected_reward"]) == 2


def test_every_path_has_a_dash_of_its_own_and_no_legend_covers_the_data(in_process_results: Path) -> None:
    results = load(in_process_results)
    preview = results.comparisons["preview"]
    for name in ("expected_reward", "expected_safety"):  # which so small a model's answers do not give
        for end in ("", "_low", "_high"):
            preview[name + end] = preview[f"{name}_exact"]
    results.comparisons["preview"] = pd.concat([preview, preview.assign(second_id="other", beta=1.0)])
    figure = draw_front(results)
    for axes in figure.axes:
        lines = [line for line in axes.get_lines() if str(line.get_label()).startswith("preview")]
        assert len({str(line._dash_pattern) for line in lines}) == len(lines) == 2
        assert axes.get_legend() is None
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(set(names)) == len(names)
    assert "exact optimum, β=2" in names


def test_lambda_and_its_interval_come_from_the_band() -> None:
    x = np.linspace(0, 2, 21)
    path = pd.DataFrame({"lambda": x, "c": x / 4, "c_low": x / 4 - 0.05, "c_high": x / 4 + 0.05})
    estimate = expected_lambda(path, "c", 0.25)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1.0, 0.8, 1.2))
    assert np.isnan(expected_lambda(path, "c", 0.5).high)


@pytest.mark.parametrize(
    ("threshold", "text"),
    [
        (0.25, "harmlessness 0.25 is expected at lambda 1.00 [0.80, 1.20]; beta_over_lambda 2 trains that policy"),
        (0.48, "harmlessness 0.48 is expected at lambda 1.92 [1.72, above 2]"),
        (0.6, "harmlessness 0.6 is not expected up to lambda 2; a smaller beta_over_lambda goes further"),
    ],
)
def test_choose_says_where_a_constraint_is_expected_to_be_reached(threshold: float, text: str) -> None:
    x = np.linspace(0, 2, 21)
    path = pd.DataFrame({"lambda": x, "beta": 2.0, "chain": "a>b", "second_id": "t", "warning": "far apart"})
    path = path.assign(harmlessness=x / 4, harmlessness_low=x / 4 - 0.05, harmlessness_high=x / 4 + 0.05)
    lines = preview_lines(path, [Constraint(criterion="harmlessness", at_least=threshold)])
    assert lines[0].startswith(f"preview of a>b, beta 2: {text}")
    assert lines[1] == "preview of a>b, beta 2: far apart"
    assert preview_lines(None, []) == []
