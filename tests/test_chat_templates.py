"""Chat templates that lose messages, have no generation prompt, or render otherwise tomorrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

from sacpo.data.tokenise import render, tokenise
from sacpo.errors import StepError
from sacpo.execution.in_process import execute
from sacpo.execution.runner import Runner
from sacpo.planning.payloads import FileContent, ModelPayload
from sacpo.planning.planner import make_plan
from sacpo.spaces.loading import parse_space
from sacpo.spaces.space import PretrainedModel
from sacpo.steps import model
from sacpo.store.step_store import Store
from tests.chain_models import ASK, TURNS, chain_model, chain_tokenizer, save, template
from tests.jobs import job
from tests.test_inspection import real_space

PARTS = template().replace(
    "{{ m['content'] }}",
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}",
)
"""Writes contents in parts, as templates of models that see images do; of a text it writes nothing."""


def prepare(folder: Path, chat_template: str, **settings: Any) -> None:
    """Carry out the model step on a model with this chat template."""
    source = save(folder / "source", chain_model({"hello": "</s>"}), chain_tokenizer(chat_template))
    loaded = PretrainedModel(kind="pretrained", path=str(source), dtype="float32", **settings)
    model.run(job(folder / "model", "model", ModelPayload(model=loaded, content=FileContent(sha256="0"))))


@pytest.mark.parametrize(
    ("chat_template", "lost"),
    [
        (PARTS, "user"),
        ("{% for m in messages if m['role'] == 'user' %}<turn> {{ m['content'] }} {% endfor %}" + ASK, "assistant"),
    ],
)
def test_a_template_that_loses_a_message_is_refused(tmp_path: Path, chat_template: str, lost: str) -> None:
    with pytest.raises(StepError, match=f"leaves the {lost}'s message out"):
        prepare(tmp_path, chat_template)


def test_a_row_whose_system_message_the_template_leaves_out_is_an_invalid_row() -> None:
    text = template().replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    turns = [{"role": "system", "content": "seven"}, {"role": "user", "content": "two"}]
    examples = [{"prompt": asked, "chosen": "three", "rejected": "four"} for asked in ("one", turns, "six")]
    arguments: dict[str, Any] = {"shape": "pairs", "tokenizer": chain_tokenizer(text), "max_length": 64}
    rows, left_out = tokenise(examples, template="chat", **arguments)
    assert left_out == {"left out by the chat template: system message": 1}
    alone, _ = tokenise([examples[0], examples[2]], template="chat", **arguments)
    assert rows == alone


def test_the_head_of_an_answer_belongs_to_the_prompt_also_without_a_generation_prompt() -> None:
    with_it, without = chain_tokenizer(template()), chain_tokenizer(TURNS.replace("END", "</s>"))
    assert render("one", tokenizer=without, template="chat") == render("one", tokenizer=with_it, template="chat")
    example = {"prompt": "one", "chosen": "three", "rejected": "four"}
    rows = [
        tokenise([example], shape="pairs", tokenizer=tokenizer, template="chat", max_length=64)[0]
        for tokenizer in (with_it, without)
    ]
    assert rows[0] == rows[1]


def test_a_variable_that_the_template_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no variable 'enable_thinkin', so it would have no effect"):
        prepare(
            tmp_path,
            "{% if enable_thinking %}one {% endif %}" + template(),
            chat_template_kwargs={"enable_thinkin": False},
        )


def test_a_date_that_cannot_be_fixed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="strftime_now with a computed format"):
        prepare(tmp_path, "{% set form = '%Y' %}{{ strftime_now(form) }} " + template())


def test_a_trained_policy_ends_where_the_turn_ends_also_for_an_outside_reader(tmp_path: Path) -> None:
    """Gemma's turns end with <end_of_turn>, and its tokenizer's EOS is another token."""
    space = real_space(tmp_path)
    source = chain_model({"hello": "<end_of_turn>", "<end_of_turn>": "hello"})
    save(tmp_path / "model", source, chain_tokenizer(template("<end_of_turn>")))
    plan = make_plan(parse_space(space))
    trial = next(trial for trial in plan.trials if trial.label == "dpo:helpfulness@0.1")
    store = Store(tmp_path / "store")
    Runner(plan, store, "run", execute).ensure(trial.policy["policy"])
    policy = pipeline("text-generation", model=str(store.verified_output_dir(trial.policy["policy"])))
    (answer,) = policy([{"role": "user", "content": "why one"}], max_new_tokens=12, do_sample=False)
    assert answer["generated_text"][-1] == {"role": "assistant", "content": "hello"}
