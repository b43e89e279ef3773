"""Turning preference rows into training examples, and keeping sets of prompts apart."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest

from sacpo.data.preferences import FORMATS, convert, exclude, in_fraction, prompt_key, split_for
from sacpo.data.prompts import read_prompts
from sacpo.data.rows import check_invalid_fraction
from sacpo.data.scores import Scoring
from sacpo.data.sources import read_rows
from sacpo.errors import DataError
from sacpo.spaces.methods import ExampleShape
from sacpo.spaces.space import RowFormat

PKU: dict[str, Any] = {
    "prompt": "How?",
    "response_0": " So. ",
    "response_1": "No.",
    "better_response_id": 0,
    "safer_response_id": 1,
    "brevity_response_id": 1,
    "is_response_0_safe": False,
    "is_response_1_safe": True,
}
TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


def one(row: dict[str, Any], format: Any, shape: Any = "pairs", objective: str | None = "helpfulness") -> Any:
    """The examples of one row, or the reason why it is invalid."""
    examples, invalid = convert([row], format=format, objective=objective, shape=shape)
    if invalid:
        assert examples == []
        assert invalid.total() == 1
        return next(iter(invalid))
    return examples


def hh(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns))


@pytest.mark.parametrize(
    ("objective", "chosen", "rejected"),
    [("helpfulness", "So.", "No."), ("harmlessness", "No.", "So."), ("brevity", "No.", "So.")],
)
def test_pku_objective_picks_its_column(objective: str, chosen: str, rejected: str) -> None:
    assert one(PKU, "pku-saferlhf", "pairs", objective) == [{"prompt": "How?", "chosen": chosen, "rejected": rejected}]
    assert one(PKU, "pku-saferlhf", "demonstrations", objective) == [{"prompt": "How?", "completion": chosen}]


@pytest.mark.parametrize("flags", [(False, True), (True, True), (False, False)])
def test_pku_labels_of_harmlessness_are_the_safety_flags(flags: tuple[bool, bool]) -> None:
    row = {**PKU, "is_response_0_safe": flags[0], "is_response_1_safe": flags[1]}
    assert [e["label"] for e in one(row, "pku-saferlhf", "labelled", "harmlessness")] == list(flags)
    labels = {e["completion"]: e["label"] for e in one(row, "pku-saferlhf", "labelled", "helpfulness")}
    assert labels == {"So.": True, "No.": False}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": None}, "missing field prompt"),
        ({"prompt": 3}, "wrong type prompt"),
        ({"prompt": " "}, "empty prompt"),
        ({"response_0": 3}, "wrong type response_0"),
        ({"response_1": "\n"}, "empty response"),
        ({"response_1": "So."}, "identical responses"),
        ({"better_response_id": True}, "id out of range"),
        ({"better_response_id": 2}, "id out of range"),
        ({"better_response_id": -1}, "id out of range"),
        ({"better_response_id": "first"}, "wrong type better_response_id"),
        ({"better_response_id": 0.5}, "wrong type better_response_id"),
        ({"better_response_id": float("nan")}, "missing field better_response_id"),
        ({"prompt": "half \ud83d"}, "lone surrogate in prompt"),
        ({"response_0": "half \ud83d"}, "lone surrogate in response_0"),
        ({"better_response_id": None}, "missing field better_response_id"),
    ],
)
def test_invalid_pku_rows_are_counted(change: dict[str, Any], reason: str) -> None:
    assert one({**PKU, **change}, "pku-saferlhf") == reason


def test_pku_flags_are_booleans() -> None:
    row = {**PKU, "is_response_1_safe": "unsafe"}
    assert one(row, "pku-saferlhf", "labelled", "harmlessness") == "wrong type is_response_1_safe"


def test_hh_single_turn_is_text_and_several_turns_are_messages() -> None:
    single = {"chosen": hh("one", "yes "), "rejected": hh("one", "no")}
    assert one(single, "hh-rlhf") == [{"prompt": "one", "chosen": "yes", "rejected": "no"}]
    several = {"chosen": hh("one", "two", "three", "yes"), "rejected": hh("one", "two", "three", "no")}
    assert one(several, "hh-rlhf") == [{"prompt": TURNS, "chosen": "yes", "rejected": "no"}]
    assert one(several, "hh-rlhf", "demonstrations") == [{"prompt": TURNS, "completion": "yes"}]
    labels = [(e["completion"], e["label"]) for e in one(several, "hh-rlhf", "labelled")]
    assert labels == [("yes", True), ("no", False)]


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (hh("one", "two", "three", "yes"), hh("one", "2", "three", "no"), "transcripts diverge before the last answer"),
        (hh("one", "yes"), hh("one", "yes", "thanks"), "not a transcript"),
        ("Human: one", hh("one", "no"), "not a transcript"),
        (hh("one", "yes"), "Once " + hh("one", "no"), "not a transcript"),
        (hh("one", " "), hh("one", "no"), "empty response"),
        (hh(" ", "yes"), hh(" ", "no"), "empty prompt"),
        (hh("one", "two", " ", "yes"), hh("one", "two", " ", "no"), "empty turn"),
        (hh("one", "two") + "\n\nAssistant: yes", hh("one", "no"), "transcripts diverge before the last answer"),
        ("\n\nAssistant: yes", "\n\nAssistant: no", "empty prompt"),
        (hh("a", "b") + "\n\nAssistant: yes", hh("a", "b") + "\n\nAssistant: no", "turns do not alternate"),
        (hh("one", "yes"), None, "missing field rejected"),
        (["one"], hh("one", "no"), "wrong type chosen"),
    ],
)
def test_invalid_transcripts_are_counted(chosen: Any, rejected: Any, reason: str) -> None:
    assert one({"chosen": chosen, "rejected": rejected}, "hh-rlhf") == reason


def test_conversational_pairs() -> None:
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    assert one({"prompt": TURNS, **answers}, "pairs") == [{"prompt": TURNS, "chosen": "chosen", "rejected": "rejected"}]
    assert one({"prompt": TURNS[:1], **answers}, "pairs")[0]["prompt"] == "one"
    assert one({"prompt": TURNS[:2], **answers}, "pairs") == "turns do not alternate"
    assert one({"prompt": [{"role": "tool", "content": "x"}], **answers}, "pairs") == "tool calls in prompt"
    assert one({"prompt": [], **answers}, "pairs") == "empty prompt"
    assert one({"prompt": "p", **answers, "chosen": TURNS}, "pairs") == "wrong type chosen"


def test_labelled_and_demonstrations() -> None:
    rows = [{"prompt": "p", "completion": name, "label": label} for name, label in (("a", True), ("b", False))]
    assert convert(rows, format="labelled", objective=None, shape="labelled") == (rows, Counter())
    good = [{"prompt": "p", "completion": "a"}]
    assert convert(rows, format="labelled", objective=None, shape="demonstrations") == (good, Counter())
    assert one(good[0], "demonstrations", "demonstrations") == good
    assert one({**rows[0], "label": 2}, "labelled", "labelled") == "wrong type label"
    assert one(good[0], "labelled", "labelled") == "missing field label"


@pytest.mark.parametrize(
    ("format", "shape", "objective"),
    [
        ("labelled", "pairs", None),
        ("demonstrations", "pairs", None),
        ("demonstrations", "labelled", None),
        ("pku-saferlhf", "demonstrations", None),
    ],
)
def test_shapes_that_a_format_cannot_give_are_refused(format: Any, shape: Any, objective: str | None) -> None:
    with pytest.raises(DataError, match=format):
        convert([], format=format, objective=objective, shape=shape)


def test_every_format_has_a_reader_that_gives_the_shapes_it_lists() -> None:
    assert set(FORMATS) == set(get_args(RowFormat))
    for format, reader in FORMATS.items():
        for shape in get_args(ExampleShape):
            if shape in reader.shapes:
                convert([], format=format, objective="helpfulness", shape=shape, scoring=Scoring(threshold=1.0))
            else:
                with pytest.raises(DataError, match=f"format {format} cannot give {shape}"):
                    convert([], format=format, objective="helpfulness", shape=shape)


def test_prompt_key_is_the_first_human_turn_in_one_case() -> None:
    assert prompt_key("  HOW\n are  You? ") == "how are you?"
    assert prompt_key([{"role": "system", "content": "S"}, *TURNS]) == prompt_key("One") == "one"


def test_sides_share_no_prompt_and_the_share_is_met() -> None:
    keys = [f"prompt {i}" for i in range(2000)]
    examples = [{"prompt": p, "n": n} for p in keys for n in range(2)]
    policy = split_for(examples, judge_fraction=0.3, side="policy")
    judge = split_for(examples, judge_fraction=0.3, side="judge")
    assert len(policy) + len(judge) == len(examples)
    assert not {e["prompt"] for e in policy} & {e["prompt"] for e in judge}
    assert 0.26 < len(judge) / len(examples) < 0.34
    assert not any(in_fraction(key, 0.0) for key in keys)
    assert all(in_fraction(key, 1.0) for key in keys)
    # A change would move prompts between judges and policies that are already trained.
    assert [in_fraction(f"prompt {i}", 0.5) for i in range(8)] == [True, True, True, False, False, False, True, True]


def test_examples_of_evaluation_prompts_are_dropped() -> None:
    examples = [{"prompt": p} for p in ("A  b", "c", "a B", "d")]
    assert exclude(examples, frozenset({"a b"})) == ([{"prompt": "c"}, {"prompt": "d"}], 2)


def test_a_file_in_the_form_of_hh_rlhf_is_read_counted_and_cleared_of_evaluation_prompts(tmp_path: Path) -> None:
    """Each way in which rows of that data set are invalid, and an evaluation prompt in other case and spacing."""
    rows = [
        (hh("How do I brew tea?", "Boil water."), hh("How do I brew tea?", "No.")),
        (hh("how do I  brew TEA?", "With leaves."), hh("how do I  brew TEA?", "Ask again.")),
        (hh("Hi", "Hello.", "And now?", "Bye."), hh("Hi", "Hello.", "And now?", "No.")),
        (hh("Hi", "Hello.", "And now?", "Bye."), hh("Hi", "Good day.", "And now?", "No.")),
        (hh("Hi") + hh("Hi", "Hello."), hh("Hi") + hh("Hi", "Good day.")),
        (hh("Hi", "Hello."), hh("Hi", "")),
        (hh("Hi", "Hello."), hh("Hi", "Hello.")),
    ]
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n" for chosen, rejected in rows)
    read = read_rows(str(path), split="train", revision=None)
    examples, invalid = convert(read, format="hh-rlhf", objective="helpfulness", shape="pairs")
    assert (len(read), len(examples)) == (7, 3)
    assert invalid == {
        "transcripts diverge before the last answer": 1,
        "turns do not alternate": 1,
        "empty response": 1,
        "identical responses": 1,
    }
    check_invalid_fraction(invalid, len(read), 0.6, "hh")
    with pytest.raises(DataError):
        check_invalid_fraction(invalid, len(read), 0.5, "hh")
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"prompt": "How do I brew tea?", "category": "cooking"}]))
    keys = frozenset(prompt_key(prompt.text) for prompt in read_prompts(str(prompts), None))
    kept, dropped = exclude(examples, keys)
    assert (len(kept), dropped) == (1, 2)
    assert not keys & {prompt_key(example["prompt"]) for example in kept}


def test_prompts_of_a_csv_file_have_the_category_of_its_column(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text('id,prompt,type\n1,"How do I kill a process, please?",homonyms\n2,Who is it?,privacy\n')
    prompts = read_prompts(str(path), None)
    assert [prompt.text for prompt in prompts] == ["How do I kill a process, please?", "Who is it?"]
    assert prompts[0].category == "homonyms"
