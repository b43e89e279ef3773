"""Where an answer ends, and faults of pretrained models that are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig, LlamaForSequenceClassification

from sacpo.data.chat_templates import opened_thought
from sacpo.data.prompts import Prompt
from sacpo.data.tokenise import render, tokenise
from sacpo.errors import StepError
from sacpo.execution.artifacts import RESPONSES
from sacpo.judges import scalar
from sacpo.planning.payloads import FileContent, GeneratePayload, ModelPayload, hashed
from sacpo.spaces.evaluation import Generation
from sacpo.spaces.space import PretrainedModel
from sacpo.steps import generate, merge, model
from tests.chain_models import WORDS, chain_model, chain_tokenizer, save, template
from tests.jobs import job


def prepare(folder: Path, source: Path, prompt_template: str = "chat") -> Path:
    """The folder of a model step on a source folder."""
    settings = PretrainedModel(kind="pretrained", path=str(source), dtype="float32", prompt_template=prompt_template)
    payload = ModelPayload(model=settings, content=FileContent(sha256="0"))
    model.run(job(folder, "model", payload))
    return folder


def answers(folder: Path, policy: Path, engine: Any = "batched") -> list[dict[str, Any]]:
    """Greedy answers of a policy to one prompt."""
    payload = GeneratePayload(
        generation=Generation(max_new_tokens=12, engine=engine), prompts="prompts-0", prompt_template="chat"
    )
    generate.run(job(folder, "generate", payload, {"policy": policy}, [Prompt.of("why", "")]))
    rows: list[dict[str, Any]] = pq.read_table(folder / RESPONSES).to_pylist()
    return rows


@pytest.mark.parametrize("declared", [None, [2, WORDS.index("<end_of_turn>")]])
@pytest.mark.parametrize("engine", ["batched", "continuous"])
def test_an_answer_ends_where_the_models_turn_ends(tmp_path: Path, declared: Any, engine: Any) -> None:
    """Gemma's turns end with <end_of_turn>, and its tokenizer's EOS is another token."""
    source = chain_model({"hello": "<end_of_turn>", "<end_of_turn>": "hello"})
    if declared is not None:
        source.generation_config.eos_token_id = declared
    folder = save(tmp_path / "source", source, chain_tokenizer(template("<end_of_turn>")))
    policy = prepare(tmp_path / "model", folder)
    (row,) = answers(tmp_path / "answers", policy, engine)
    assert (row["response"], row["tokens"], row["finished"]) == ("hello", 2, True)
    assert GenerationConfig.from_pretrained(policy).eos_token_id == [WORDS.index("<end_of_turn>"), 2]
    assert merge.merged(policy, policy, 0.5).generation_config.eos_token_id == [WORDS.index("<end_of_turn>"), 2]


def test_sampling_settings_of_the_vendor_do_not_join_the_sweeps(tmp_path: Path) -> None:
    source = chain_model({"hello": "</s>"})
    source.generation_config.update(do_sample=True, temperature=0.3, top_k=3, repetition_penalty=1.3)
    config = GenerationConfig.from_pretrained(
        prepare(tmp_path / "model", save(tmp_path / "source", source, chain_tokenizer(template())))
    )
    assert (config.temperature, config.top_k, config.repetition_penalty) == (None, None, None)


def test_an_answer_without_an_end_is_not_finished(tmp_path: Path) -> None:
    folder = save(tmp_path / "source", chain_model({}), chain_tokenizer(template()))
    (row,) = answers(tmp_path / "answers", prepare(tmp_path / "model", folder))
    assert (row["tokens"], row["finished"]) == (12, False)


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_sizes(tmp_path: Path) -> None:
    tokenizer = chain_tokenizer(template(), pad_token="<newpad>")
    folder = save(tmp_path / "source", chain_model({}), tokenizer)
    size = len(WORDS)
    message = rf"the tokenizer has {size + 1} tokens, the model {size}: pad token <newpad> has no embedding; resize"
    with pytest.raises(StepError, match=message):
        prepare(tmp_path / "model", folder)


def test_missing_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = save(tmp_path / "source", chain_model({}), chain_tokenizer(template()))
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StepError, match=r"lm_head\.weight are not in the checkpoint, so they would be random"):
        prepare(tmp_path / "model", folder)


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    tied = save(tmp_path / "tied", chain_model({}, tie_word_embeddings=True), chain_tokenizer(template()))
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    prepare(tmp_path / "model", tied)


def test_a_doubled_beginning_of_sequence_is_refused(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = chain_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = save(tmp_path / "source", chain_model({}), tokenizer)
    with pytest.raises(StepError, match=r"begins with <s>, which the tokenizer of .* adds by itself"):
        prepare(tmp_path / "model", folder, "<s> user {prompt} assistant")
    prepare(tmp_path / "other", folder, "user {prompt} assistant")


def test_a_chat_template_that_fails_is_refused_with_its_words(tmp_path: Path) -> None:
    broken = "{{ raise_exception('roles must alternate') }}"
    folder = save(tmp_path / "source", chain_model({}), chain_tokenizer(broken))
    with pytest.raises(StepError, match=r"its chat template fails .*roles must alternate"):
        prepare(tmp_path / "model", folder)


def test_a_reward_model_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "source", chain_model({}), chain_tokenizer(template()))
    with pytest.raises(StepError, match=r"score\.weight are not in the checkpoint"):
        scalar.reward_model(folder, revision=None, sign=1, template="chat", max_length=64)
    headed = LlamaForSequenceClassification.from_pretrained(folder, num_labels=1)
    save(tmp_path / "headed", headed, chain_tokenizer(template()))
    score = scalar.reward_model(tmp_path / "headed", revision=None, sign=1, template="chat", max_length=64)
    assert len(score([("why", "hello")])) == 1


THINK = template().replace("<turn> assistant {% endif %}", "<turn> assistant <think> {% endif %}")


def test_a_thought_that_only_the_generation_prompt_opens_is_left_out(tmp_path: Path) -> None:
    """DeepSeek-R1-Distill and others: training has the response right after the turn's head."""
    source = chain_model({"<think>": "why", "why": "</think>", "</think>": "hello", "hello": "</s>"})
    policy = prepare(tmp_path / "model", save(tmp_path / "source", source, chain_tokenizer(THINK)))
    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert opened_thought(tokenizer) == "<think> "
    assert render("why", tokenizer=tokenizer, template="chat") == "<turn> user why </s> <turn> assistant "
    assert answers(tmp_path / "answers", policy)[0]["response"] == "hello"


def test_thoughts_reach_no_judge(tmp_path: Path) -> None:
    source = chain_model({"assistant": "<think>", "<think>": "why", "why": "</think>", "hello": "</s>"})
    policy = prepare(tmp_path / "model", save(tmp_path / "source", source, chain_tokenizer(template())))
    (row,) = answers(tmp_path / "answers", policy)
    assert (row["response"], row["tokens"], row["finished"]) == ("hello", 5, True)
    endless = chain_model({"assistant": "<think>", "<think>": "why", "why": "why"})
    policy = prepare(tmp_path / "endless", save(tmp_path / "other", endless, chain_tokenizer(template())))
    (row,) = answers(tmp_path / "cut", policy)
    assert (row["response"], row["finished"]) == ("", False)


def test_variables_and_the_date_of_a_chat_template_are_fixed_in_the_models_folder(tmp_path: Path) -> None:
    text = "{{ strftime_now('%d %b %Y') }} {% if brief %}three{% endif %} {{ mood }} " + template()
    folder = save(tmp_path / "source", chain_model({"hello": "</s>"}), chain_tokenizer(text))
    settings = PretrainedModel(
        kind="pretrained", path=str(folder), chat_template_kwargs={"brief": True, "mood": "two"}, chat_date="2025-01-02"
    )
    model.run(job(tmp_path / "model", "model", ModelPayload(model=settings, content=FileContent(sha256="0"))))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert render("why", tokenizer=tokenizer, template="chat").startswith("02 Jan 2025 three two <turn> user why")


def test_the_date_and_the_variables_change_the_id_and_a_wrong_date_is_refused() -> None:
    def payload(**changes: Any) -> dict[str, Any]:
        settings = PretrainedModel(kind="pretrained", path="p", **changes)
        return hashed(ModelPayload(model=settings, content=FileContent(sha256="0")))

    assert payload() == payload(chat_date="2024-07-26") == payload(chat_template_kwargs={})
    assert len({str(payload(**c)) for c in ({}, {"chat_date": "2025-01-02"}, {"chat_template_kwargs": {"a": 1}})}) == 3
    with pytest.raises(ValueError, match="chat_date"):
        payload(chat_date="2025-13-01")


def test_a_row_that_the_template_refuses_is_one_invalid_row() -> None:
    text = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + template()
    turns = [{"role": "system", "content": "one"}, {"role": "user", "content": "two"}]
    examples = [{"prompt": prompt, "chosen": "three", "rejected": "four"} for prompt in ("one", turns, "two")]
    rows, left_out = tokenise(examples, shape="pairs", tokenizer=chain_tokenizer(text), template="chat", max_length=64)
    assert (len(rows), left_out) == (2, {"refused by the chat template: no system role": 1})


@pytest.mark.parametrize("tied", [True, False])
def test_a_dequantised_model_is_saved_as_a_plain_one(tmp_path: Path, tied: bool) -> None:
    dequantised = chain_model({}, tie_word_embeddings=tied)
    dequantised.config.quantization_config = {"quant_method": "gguf"}
    plain = model._without_quantization_config(dequantised)
    assert not hasattr(plain.config, "quantization_config")
    plain.save_pretrained(tmp_path)
    for saved in (plain, type(dequantised).from_pretrained(tmp_path)):
        expected = dequantised.state_dict()
        assert saved.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in saved.state_dict().items())
    assert plain.generation_config.eos_token_id == dequantised.generation_config.eos_token_id
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(plain(input_ids=ids).logits, dequantised(input_ids=ids).logits)
