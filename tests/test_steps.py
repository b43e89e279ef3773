"""Steps by themselves, without a cluster: models, merges, answers and scores, on tiny real models."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

from sacpo.data.prompts import Prompt
from sacpo.errors import StepError
from sacpo.execution.artifacts import RESPONSES
from sacpo.judges import scalar
from sacpo.planning.metrics import GenerateMetrics
from sacpo.planning.payloads import GeneratePayload
from sacpo.spaces.evaluation import Generation
from sacpo.steps import generate, merge, model
from sacpo.steps.engines import continuous
from sacpo.steps.generate import _ended
from sacpo.steps.policies import load_policy
from sacpo.synthetic.world import SENTENCES
from tests.jobs import job, policy, pretrained


def test_the_worlds_tokenizer_has_one_token_per_sentence_and_is_lossless(tmp_path: Path) -> None:
    tokenizer = load_policy({"policy": policy(tmp_path)})[1]
    text = " ".join(SENTENCES)
    ids = tokenizer(text + tokenizer.eos_token)["input_ids"]
    assert len(ids) == len(SENTENCES) + 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_model_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    source = policy(tmp_path / "source")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    with pytest.raises(StepError, match=r"no tokenizer can be loaded.*put the tokenizer's files beside"):
        model.run(job(tmp_path / "out", "model", pretrained(source)))


def test_a_missing_chat_template_and_missing_weights_are_named(tmp_path: Path) -> None:
    source = policy(tmp_path / "source")
    with pytest.raises(StepError, match=r"has no chat template; give a text with \{prompt\}"):
        model.run(job(tmp_path / "out", "model", pretrained(source)))
    (source / "model.safetensors").unlink()
    with pytest.raises(StepError, match="no causal language model"):
        model.run(job(tmp_path / "out", "model", pretrained(source)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_is_the_average_in_float32_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    first, second = (policy(tmp_path / str(seed), seed=seed, dtype=name) for seed in (0, 1))
    a, b = (load_file(folder / "model.safetensors") for folder in (first, second))
    for q in (0.0, 0.3, 1.0):
        average = merge.merged(first, second, q).state_dict()
        for key in a:
            assert torch.equal(average[key], ((1 - q) * a[key].float() + q * b[key].float()).to(dtype))
    with pytest.raises(StepError, match="in one parent"):
        merge.merged(first, policy(tmp_path / "wider", hidden_size=32, dtype=name), 0.5)
    with pytest.raises(StepError, match="name them differently"):
        merge.merged(first, policy(tmp_path / "deeper", layers=2, dtype=name), 0.5)


def test_tied_weights_are_averaged_once(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = LlamaConfig(vocab_size=12, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                             num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True)  # fmt: skip
        folders.append(tmp_path / str(seed))
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[-1])
    average = merge.merged(*folders, 0.25)
    a, b = (load_file(folder / "model.safetensors")["model.embed_tokens.weight"] for folder in folders)
    assert torch.equal(average.lm_head.weight, 0.75 * a + 0.25 * b)


def test_an_answer_ends_at_the_end_token_or_the_limit_and_nowhere_else() -> None:
    answers = [[5, 2, 0, 0], [5, 6, 7, 8], [2, 5, 2, 2]]
    assert [_ended(answer, ends={2}) for answer in answers] == [[5, 2], [5, 6, 7, 8], [2]]


def answer(folder: Path, source: Path, **changes: Any) -> list[dict[str, Any]]:
    """Three answers to each of five prompts; the policy is also the SFT policy."""
    settings = {"max_new_tokens": 6, "temperature": 1.0, "samples": 3, "batch_size": 4} | changes
    generation = Generation.model_validate(settings)
    payload = GeneratePayload(generation=generation, prompts="prompts-0", prompt_template="{prompt} ")
    prompts = [Prompt(str(i), text, "benign") for i, text in enumerate(SENTENCES[:5])]
    report = generate.run(job(folder, "generate", payload, {"policy": source, "sft": source}, prompts))
    rows: list[dict[str, Any]] = pq.read_table(folder / RESPONSES).to_pylist()
    assert isinstance(report.metrics, GenerateMetrics)
    assert report.metrics.responses == len(rows)
    assert report.metrics.kl_to_sft == pytest.approx(0.0, abs=1e-6)
    return rows


@pytest.mark.parametrize("engine", ["batched", "continuous"])
def test_answers_are_seeded_complete_and_say_whether_they_finished(tmp_path: Path, engine: str) -> None:
    source = policy(tmp_path / "policy")
    rows = answer(tmp_path / "a", source, engine=engine)
    assert rows == answer(tmp_path / "b", source, engine=engine)
    assert rows != answer(tmp_path / "c", source, engine=engine, seed=1)
    assert [(row["prompt_id"], row["sample"]) for row in rows] == [(str(i), k) for i in range(5) for k in range(3)]
    assert all(row["finished"] == (row["tokens"] < 6) or row["tokens"] == 6 for row in rows)
    greedy = answer(tmp_path / "d", source, engine=engine, temperature=0.0)
    assert greedy == answer(tmp_path / "e", source, engine="batched", temperature=0.0, batch_size=1)
    assert len({row["response"] for row in greedy if row["prompt_id"] == "0"}) == 1
    ids = AutoModelForCausalLM.from_pretrained(source).generate(
        torch.tensor([[4]]), max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    tokenizer = load_policy({"policy": source})[1]
    assert tokenizer.decode(ids[0, 1:], skip_special_tokens=True) == greedy[0]["response"]


@pytest.mark.parametrize(("error", "answered"), [("out of blocks", 2), (None, 1)])
def test_a_prompt_that_continuous_batching_left_without_an_answer_fails_the_step(
    tmp_path: Path, error: str | None, answered: int
) -> None:
    network, tokenizer = load_policy({"policy": policy(tmp_path)})
    outputs = {str(i): SimpleNamespace(generated_tokens=[4], error=error) for i in range(answered)}
    network.generate_batch = lambda **_: outputs
    settings = Generation(max_new_tokens=6, batch_size=4)
    with pytest.raises(StepError, match=f"of 2 prompts without an answer .({error or 'it ended early'})"):
        continuous(network, tokenizer, [[4], [5]], settings)


def test_a_cost_model_has_the_declared_sign_and_gives_no_verdict_on_texts_that_are_too_long(tmp_path: Path) -> None:
    tokenizer = load_policy({"policy": policy(tmp_path / "policy")})[1]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    pairs = [(SENTENCES[0], SENTENCES[30]), (SENTENCES[1], " ".join(SENTENCES[30:40]))]

    def scores(sign: int, max_length: int = 64) -> list[float]:
        judge = scalar.reward_model(
            tmp_path / "judge", revision=None, sign=sign, template="{prompt} ", max_length=max_length
        )
        return judge(pairs)

    assert scores(1) == pytest.approx([-value for value in scores(-1)])
    fit, too_long = scores(1, max_length=4)
    assert fit == pytest.approx(scores(1)[0], abs=1e-6)
    assert scalar.outcome(too_long, fit, 0.0) == "unavailable"
    settings = json.loads((tmp_path / "judge" / "config.json").read_text())
    settings["num_labels"], settings["id2label"] = 2, {"0": "a", "1": "b"}
    settings["label2id"] = {"a": 0, "b": 1}
    (tmp_path / "judge" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "judge" / "model.safetensors").unlink()
    LlamaForSequenceClassification(LlamaConfig(**settings)).save_pretrained(tmp_path / "judge")
    with pytest.raises(StepError, match="has 2 outputs"):
        scores(1)


@pytest.mark.parametrize(
    ("ours", "theirs", "margin", "expected"),
    [(2.0, 1.0, 0.0, "win"), (1.0, 2.0, 0.0, "loss"), (1.0, 1.0, 0.0, "tie"), (1.2, 1.0, 0.5, "tie"),
     (float("nan"), 1.0, 0.0, "unavailable"), (1.0, float("inf"), 0.0, "loss")],
)  # fmt: skip
def test_outcomes(ours: float, theirs: float, margin: float, expected: str) -> None:
    assert scalar.outcome(ours, theirs, margin) == expected
