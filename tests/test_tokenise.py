"""Token ids of examples, and the same texts for generation and judging."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sacpo.data.tokenise import Tally, conversation, encode, render, tokenise, whole_pairs
from sacpo.errors import DataError

TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]
CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def make_tokenizer(appends: str = "", eos: str | None = "</s>") -> PreTrainedTokenizerFast:
    words = ["<unk>", "<s>", "</s>", "[user]", "[assistant]", "Human:", "Assistant:", "USER:"]
    words += ["one", "two", "three", "yes", "no", "a", "b"]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    inner.post_processor = TemplateProcessing(f"<s> $A {appends}".strip(), special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token=eos)
    tokenizer.chat_template = CHAT
    return tokenizer


TOKENIZER = make_tokenizer()
TEXT = "USER: {prompt} Assistant: "
PAIR = {"prompt": "one", "chosen": "yes a", "rejected": "no"}


def words(ids: list[int]) -> str:
    return " ".join(TOKENIZER.convert_ids_to_tokens(ids))


def run(
    examples: list[dict[str, Any]], shape: Any = "pairs", template: str = TEXT, max_length: int = 64, **kwargs: Any
) -> Any:
    tokenizer = kwargs.get("tokenizer", TOKENIZER)
    return tokenise(examples, shape=shape, tokenizer=tokenizer, template=template, max_length=max_length)


@pytest.mark.parametrize("appends", ["", "</s>"], ids=["plain", "tokenizer appends EOS"])
def test_text_template_ends_responses_and_only_them_with_one_eos(appends: str) -> None:
    (row,), left_out = run([PAIR], tokenizer=make_tokenizer(appends))
    assert {key: words(ids) for key, ids in row.items()} == {
        "prompt_ids": "<s> USER: one Assistant:",
        "chosen_ids": "yes a </s>",
        "rejected_ids": "no </s>",
    }
    assert not left_out


def test_no_special_tokens_are_added_to_a_chat_template() -> None:
    (row,), _ = run([{**PAIR, "prompt": TURNS}], template="chat")
    assert words(row["prompt_ids"]) == "[user] one </s> [assistant] two </s> [user] three </s> [assistant]"
    assert words(row["chosen_ids"]) == "yes a </s>"
    short = {"prompt_ids": [5], "chosen_ids": [6, 7], "rejected_ids": []}
    expected = [{key: r["prompt_ids"] + r[key] for key in ("chosen_ids", "rejected_ids")} for r in (short, row, short)]
    schema = pa.schema(dict.fromkeys(row, pa.list_(pa.int32())))
    assert whole_pairs(pa.Table.from_pylist([short, row, short], schema)).to_pylist() == expected
    assert whole_pairs(pa.Table.from_pylist([row, short, row, short], schema).slice(1)).to_pylist() == expected


def test_labelled_and_demonstration_rows() -> None:
    example = {"prompt": "one", "completion": "yes", "label": False}
    (row,), _ = run([example], "labelled")
    assert row.keys() == {"prompt_ids", "completion_ids", "label"}
    assert row["label"] is False
    (row,), _ = run([example], "demonstrations")
    assert words(row["input_ids"]) == "<s> USER: one Assistant: yes </s>"
    assert row["labels"] == [-100] * 4 + row["input_ids"][4:]


def test_several_turns_in_a_text_template_are_a_transcript() -> None:
    template = "\n\nHuman: {prompt}\n\nAssistant:"
    assert (
        render(TURNS, tokenizer=TOKENIZER, template=template)
        == "\n\nHuman: one\n\nAssistant: two\n\nHuman: three\n\nAssistant:"
    )


def test_rendered_texts_have_the_ids_that_training_sees() -> None:
    for template in ("chat", TEXT):
        kwargs: dict[str, Any] = {"tokenizer": TOKENIZER, "template": template}
        (row,), _ = run([PAIR], template=template)
        assert encode([render("one", **kwargs)], **kwargs) == [row["prompt_ids"]]
        assert encode([conversation("one", "no", **kwargs)], **kwargs) == [row["prompt_ids"] + row["rejected_ids"]]


def test_braces_in_prompts_and_templates_are_plain_text() -> None:
    text = render("{x} {prompt}", tokenizer=TOKENIZER, template="{a} {prompt}")
    assert text == "{a} {x} {prompt}"


def test_rows_left_out_are_counted_and_the_limits_are_exact() -> None:
    same = {**PAIR, "chosen": "zebra", "rejected": "quagga"}
    assert run([same]) == ([], Counter({"identical responses after tokenisation": 1}))
    assert len(run([PAIR], max_length=7)[0]) == 1
    assert run([PAIR], max_length=6) == ([], Counter({"longer than max_length": 1}))
    assert run([PAIR], max_length=5) == ([], Counter({"longer than max_length": 1}))
    assert run([PAIR], max_length=4) == ([], Counter({"prompt fills max_length": 1}))
    ignores_response = make_tokenizer()
    ignores_response.chat_template = "{{ messages[0]['content'] }}"
    _, left_out = run([PAIR], template="chat", tokenizer=ignores_response)
    assert left_out == Counter({"empty response after tokenisation": 1})
    assert run([]) == ([], Counter())


def test_prompts_that_merge_with_their_response_are_counted() -> None:
    tally = Tally()
    example = {**PAIR, "chosen": "b yes", "rejected": "a no"}
    arguments: dict[str, Any] = {"shape": "pairs", "tokenizer": TOKENIZER, "max_length": 64, "tally": tally}
    (row,), _ = tokenise([example], template="{prompt} two", **arguments)
    assert words(row["prompt_ids"]) == "<s> one"
    assert (tally.merged, tally.lengths) == (1, [5])
    tokenise([PAIR], template=TEXT, **arguments)
    assert (tally.merged, tally.lengths) == (1, [5, 7])


def test_text_template_needs_an_eos_token() -> None:
    with pytest.raises(DataError, match="no end-of-sequence token"):
        run([PAIR], tokenizer=make_tokenizer(eos=None))
