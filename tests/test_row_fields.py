"""Rows as hubs and notebooks store them: other types, other forms of a conversation, texts that cannot be written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sacpo.data.preferences import convert, exclude, prompt_key
from sacpo.data.prompts import read_prompts
from sacpo.errors import DataError
from sacpo.spaces.methods import ExampleShape
from sacpo.spaces.space import RowFormat

USER, ASSISTANT = "user", "assistant"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def only(row: dict[str, Any], format: RowFormat = "pairs", shape: ExampleShape = "pairs") -> dict[str, Any]:
    """The one example of a row."""
    (example,), invalid = convert([row], format=format, objective="helpfulness", shape=shape)
    assert not invalid
    return example


@pytest.mark.parametrize("value", [0, 0.0, "0", "0.0", " 0 "])
def test_a_response_id_is_read_from_any_unambiguous_type(value: Any) -> None:
    row = {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": value}
    assert only(row, "pku-saferlhf")["chosen"] == "a"


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "true", "True", " TRUE "])
def test_a_flag_is_read_from_any_unambiguous_type(value: Any) -> None:
    assert only({"prompt": "p", "completion": "c", "label": value}, "labelled", "labelled")["label"] is True


@pytest.mark.parametrize("value", ["yes", "safe", 0.5, 2, [True]])
def test_an_ambiguous_flag_is_an_invalid_row(value: Any) -> None:
    row = {"prompt": "p", "completion": "c", "label": value}
    assert convert([row], format="labelled", objective=None, shape="labelled")[1] == {"wrong type label": 1}


@pytest.mark.parametrize("write", [json.dumps, repr, lambda value: json.dumps(value, indent=1)])
def test_messages_are_read_from_a_text_of_json_or_of_python(write: Any) -> None:
    """A list that pandas writes to a CSV file is the text that Python writes for it."""
    asked = [turn(USER, "It's one"), turn(ASSISTANT, 'say "two"'), turn(USER, "three")]
    row = {"prompt": write(asked), "chosen": write([turn(ASSISTANT, "a")]), "rejected": "b"}
    assert only(row) == {"prompt": asked, "chosen": "a", "rejected": "b"}


def test_a_text_of_messages_that_cannot_be_parsed_is_no_prompt() -> None:
    row = {"prompt": "[{'role': 'user', 'content': 'a'}\n {'role': 'user'}]", "chosen": "a", "rejected": "b"}  # numpy's
    reasons = convert([row], format="pairs", objective=None, shape="pairs")[1]
    assert reasons == {"messages that cannot be parsed in prompt": 1}
    assert only(row | {"prompt": "[{x}] is a set in a list?"})["prompt"] == "[{x}] is a set in a list?"


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ([{"from": "human", "value": "one"}], {"from": "gpt", "value": "a"}),  # ShareGPT
        ([{"role": "human", "content": "one"}], [{"role": "gpt", "content": "a"}]),
        (turn(USER, "one"), turn(ASSISTANT, "a")),
        ([{"role": USER, "content": [{"type": "text", "text": "one"}]}], [turn(ASSISTANT, "a")]),
        ([turn(USER, "one") | {"tool_calls": None}], [turn(ASSISTANT, "a") | {"tool_calls": []}]),  # Parquet's columns
        (json.dumps([{"from": "human", "value": "one"}]), "a"),
    ],
)
def test_messages_are_read_in_the_forms_in_which_hubs_store_them(asked: Any, chosen: Any) -> None:
    assert only({"prompt": asked, "chosen": chosen, "rejected": "b"}) == {
        "prompt": "one",
        "chosen": "a",
        "rejected": "b",
    }


def test_an_instruction_of_the_developer_is_a_system_message() -> None:
    row = {"prompt": [turn("developer", "two"), turn(USER, "one")], "chosen": "a", "rejected": "b"}
    assert only(row)["prompt"] == [turn("system", "two"), turn(USER, "one")]


CALL = {"role": ASSISTANT, "content": "let me look", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": [turn(USER, "one"), CALL, turn(USER, "two")]}, "tool calls in prompt"),
        ({"prompt": [turn(USER, "one"), turn("tool", "3"), turn(USER, "two")]}, "tool calls in prompt"),
        ({"chosen": [CALL]}, "tool calls in chosen"),
        (
            {"prompt": [{"role": USER, "content": [{"type": "image"}, {"type": "text", "text": "x"}]}]},
            "image in prompt",
        ),
        ({"prompt": [turn("narrator", "one")]}, "unknown role narrator in prompt"),
        ({"prompt": [turn(USER, "one"), turn(ASSISTANT, ""), turn(USER, "two")]}, "empty turn"),
        ({"prompt": [turn(USER, "one"), turn("system", "x"), turn(USER, "two")]}, "turns do not alternate"),
        ({"prompt": [{"role": USER, "content": ["one"]}]}, "wrong type prompt"),
    ],
)
def test_messages_with_more_than_text_are_invalid_rows_and_lose_nothing_silently(
    change: dict[str, Any], reason: str
) -> None:
    row = {"prompt": "one", "chosen": "a", "rejected": "b"} | change
    assert convert([row], format="pairs", objective=None, shape="pairs") == ([], {reason: 1})


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("BEGINNING OF CONVERSATION: USER: one ASSISTANT:", "ASSISTANT:"),
        ("A chat.\n\nHuman: one\n\nAssistant:", "Assistant:"),
        ("### Human: one\n### Assistant: ", "### Assistant:"),
        ("Below is an instruction.\n\n### Instruction:\none\n\n### Response:\n", "### Response:"),
        ("[INST] one [/INST]", "[/INST]"),
        ("<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>assistant"),
        ("<|user|>\none\n<|assistant|>\n", "<|assistant|>"),
        ("Human: one Assistant:", "Assistant:"),
        ([turn(USER, "one"), turn(ASSISTANT, "two"), turn(USER, "three\n\n### Response:")], "### Response:"),
    ],
)
def test_a_prompt_that_another_template_has_rendered_is_refused(tmp_path: Path, text: Any, ending: str) -> None:
    """The model's template would be put around it, and that an evaluation asks it would not be seen."""
    row = {"prompt": text, "chosen": "a", "rejected": "b"}
    reason = f"a template is in the prompt already: it ends with {ending}"
    assert convert([row], format="pairs", objective=None, shape="pairs")[1] == {reason: 1}
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"prompt": text}]))
    with pytest.raises(DataError, match=r"row 1 (is in a template already|is a transcript|has prompt)"):
        read_prompts(str(path), None)


def test_a_prompt_about_an_assistant_is_an_ordinary_prompt(tmp_path: Path) -> None:
    for text in ("Assistant: what is that?", "Who is the USER, who the ASSISTANT: tell me", "Q: one\nA:"):
        assert only({"prompt": text, "chosen": "a", "rejected": "b"})["prompt"] == text
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"prompt": "Human: one\n\nAssistant:"}]))
    with pytest.raises(DataError, match=r"row 1 is a transcript.*`kind: files`"):
        read_prompts(str(path), None)


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\n", "\r\n"])
def test_the_turns_of_a_transcript_may_have_other_line_ends(end: str) -> None:
    text = end.join(["Human: one", "Assistant: two", "Human: three", "Assistant:"])
    asked = only({"prompt": text, "chosen": "a", "rejected": "b"})["prompt"]
    assert asked == [turn(USER, "one"), turn(ASSISTANT, "two"), turn(USER, "three")]
    assert prompt_key(text) == prompt_key(asked) == prompt_key("one")


@pytest.mark.parametrize("with_prompt", [True, False])
@pytest.mark.parametrize("as_text", [True, False])
def test_whole_conversations_as_chosen_and_rejected_share_their_prompt(with_prompt: bool, as_text: bool) -> None:
    """UltraFeedback-binarized has them so, with `prompt` beside; TRL's implicit prompts without."""
    shared = [turn(USER, "one"), turn(ASSISTANT, "two"), turn(USER, "three")]
    row: dict[str, Any] = {"chosen": [*shared, turn(ASSISTANT, "good")], "rejected": [*shared, turn(ASSISTANT, "bad")]}
    if as_text:
        row = {name: json.dumps(value) for name, value in row.items()}
    if with_prompt:
        row["prompt"] = "one"
    assert only(row) == {"prompt": shared, "chosen": "good", "rejected": "bad"}


def test_conversations_that_part_before_the_last_answer_are_invalid() -> None:
    row = {
        "chosen": [turn(USER, "one"), turn(ASSISTANT, "good")],
        "rejected": [turn(USER, "two"), turn(ASSISTANT, "bad")],
    }
    reasons = convert([row], format="pairs", objective=None, shape="pairs")[1]
    assert reasons == {"transcripts diverge before the last answer": 1}


def test_a_transcript_as_prompt_becomes_turns() -> None:
    row = {"prompt": "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:", "chosen": "a", "rejected": "b"}
    assert only(row)["prompt"] == [turn(USER, "one"), turn(ASSISTANT, "two"), turn(USER, "three")]
    assert only(row | {"prompt": "Human: one\n\nAssistant:"})["prompt"] == "one"
    text = "Compare these:\n\nHuman: is a species"
    assert only(row | {"prompt": text})["prompt"] == text  # no transcript: it begins otherwise


@pytest.mark.parametrize(
    "stored",
    [
        "What is a caf\u00e9?",
        "what is  a CAF\u00c9?",
        "What is a cafe\u0301?",
        "\n\nHuman: What is a caf\u00e9?\n\nAssistant:",
        "\ufeffWhat\u00a0is a caf\u00e9\u200b?",
        "What is a caf\u00e9\uff1f",
        [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is a caf\u00e9?"}],
    ],
)
def test_an_evaluation_prompt_is_kept_out_of_training_in_whichever_form_it_is_stored(stored: Any) -> None:
    evaluation = frozenset({prompt_key("What is a caf\u00e9?")})
    assert exclude([{"prompt": stored, "completion": "c"}], evaluation) == ([], 1)
    assert exclude([{"prompt": "What is tea?", "completion": "c"}], evaluation)[1] == 0


def test_prompts_with_typographic_signs_are_the_same_prompts() -> None:
    assert prompt_key("What\u2019s a \u201ctea\u2013time\u201d?") == prompt_key('what\'s a "tea-time"?')


def test_half_of_a_surrogate_pair_is_one_invalid_row_of_data_and_refused_in_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": text} for text in ("b", "\ud83d")]
    examples, invalid = convert(rows, format="pairs", objective=None, shape="pairs")
    assert (len(examples), invalid) == (1, {"lone surrogate in rejected": 1})
    messages = [{"prompt": [turn(USER, "\ud83d")], "chosen": "a", "rejected": "b"}]
    assert convert(messages, format="pairs", objective=None, shape="pairs")[1] == {"lone surrogate in prompt": 1}
    path = tmp_path / "prompts.json"
    path.write_text('[{"prompt": "one"}, {"prompt": "half \\ud83d"}]')
    with pytest.raises(DataError, match="row 2 has half of a surrogate pair"):
        read_prompts(str(path), None)
    path.write_text('[{"prompt": "one", "category": "\\ud83d"}]')
    with pytest.raises(DataError, match="row 1 has half of a surrogate pair"):
        read_prompts(str(path), None)


def test_the_name_of_the_speaker_does_not_hide_that_an_evaluation_asks_a_prompt() -> None:
    for text in ("Human: How are you?", "USER: How are you?", "### Question: how are you?", "Q: How are  you?"):
        assert prompt_key(text) == prompt_key("How are you?")
    assert prompt_key("Users: how many?") == "users: how many?"


@pytest.mark.parametrize("beside", ["Another question?", [turn(USER, "Another question?")]])
def test_conversations_that_do_not_begin_with_the_prompt_beside_them_are_invalid(beside: Any) -> None:
    row = {"chosen": [turn(USER, "one"), turn(ASSISTANT, "a")], "rejected": [turn(USER, "one"), turn(ASSISTANT, "b")]}
    for same in (None, "", "one", [turn(USER, "one")]):
        assert only(row | {"prompt": same})["prompt"] == "one"
    _, invalid = convert([row | {"prompt": beside}], format="pairs", objective=None, shape="pairs")
    assert invalid == {"the conversations do not begin with the prompt beside them": 1}


@pytest.mark.parametrize("value", ["NaN", "", " null ", "None"])
def test_a_text_without_a_value_is_a_missing_id_or_flag(value: str) -> None:
    row = {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": value}
    _, invalid = convert([row], format="pku-saferlhf", objective="helpfulness", shape="pairs")
    assert invalid == {"missing field better_response_id": 1}
    row = {"prompt": "p", "completion": "c", "label": value}
    _, invalid = convert([row], format="labelled", objective=None, shape="labelled")
    assert invalid == {"missing field label": 1}
