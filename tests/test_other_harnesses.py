"""Answers for other harnesses, and verdicts that come back from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sacpo import export, judge
from sacpo.errors import DataError, SpaceError
from sacpo.judges.annotations import from_annotations, read_annotations
from sacpo.judges.verdicts import AnswerPair
from sacpo.results import load
from sacpo.runs.answer_formats import Answers, write_answers
from sacpo.spaces.loading import parse_space
from tests.commands import call
from tests.spaces import small

ROW = {"instruction": "Hi?", "output_1": "No.", "output_2": "Hello!", "annotator": "a", "preference": 1.75}
ANSWER = {"trial_id": "t", "prompt_id": "p", "category": "c", "prompt": "Hi?", "tokens": 4, "finished": True}


def annotation_file(folder: Path, *rows: dict[str, Any]) -> Path:
    """AlpacaEval's annotations.json with these rows."""
    path = folder / "annotations.json"
    path.write_text(json.dumps(rows))
    return path


def answers(is_baseline: bool = False) -> Answers:
    """Two answers of a policy to one prompt."""
    texts = ["<think>hm</think># Hello\n\n- **a**\n```\n# b\n```", "Hello!"]
    rows = [ANSWER | {"sample": i, "response": text} for i, text in enumerate(texts)]
    return Answers("helpfulness", "dpo > x", "dpo_x", is_baseline, rows, 1.7e9)


def test_alpaca_evals_outputs_have_its_fields_and_one_answer_a_prompt(tmp_path: Path) -> None:
    paths = write_answers([answers(is_baseline=True)], "alpaca_eval", tmp_path)
    names = {path.name: json.loads(path.read_text()) for path in paths}
    assert set(names) == {
        "dpo_x.json", "reference_outputs.json", "dpo_x.sample-1.json", "reference_outputs.sample-1.json",
    }  # fmt: skip
    assert names["dpo_x.sample-1.json"] == [{"instruction": "Hi?", "output": "Hello!", "generator": "dpo > x"}]
    assert "think" not in names["dpo_x.json"][0]["output"]


def test_arena_hards_answers_have_the_fields_that_its_scripts_read(tmp_path: Path) -> None:
    answer_path, question_path = write_answers([answers(is_baseline=True)], "arena_hard", tmp_path)
    assert answer_path.relative_to(tmp_path) == Path("helpfulness/model_answer/dpo_x.jsonl")
    (row,) = [json.loads(line) for line in answer_path.read_text().splitlines()]
    (question,) = [json.loads(line) for line in question_path.read_text().splitlines()]
    assert set(row) == {"uid", "ans_id", "model", "messages", "tstamp", "metadata"}
    assert (row["uid"], row["model"]) == (question["uid"], "dpo_x")
    assert row["messages"][-1]["content"]["answer"].startswith("# Hello")
    assert row["metadata"]["header_count"]["h1"] == 1, "code blocks have no headers"
    assert row["metadata"]["list_count"] == {"ordered": 0, "unordered": 1}
    assert (row["metadata"]["bold_count"]["**"], row["metadata"]["token_len"]) == (1, 4)
    assert question | {"uid": ""} == {"uid": "", "category": "helpfulness", "subcategory": "c", "prompt": "Hi?"}


def test_inspects_logs_are_read_by_its_own_api(tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log")
    (path,) = write_answers([answers()], "inspect", tmp_path)
    read = log.read_eval_log(str(path))
    assert [(s.id, s.epoch, s.output.completion[:7]) for s in read.samples] == [("p", 1, "# Hello"), ("p", 2, "Hello!")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"preference": 2.5}, "row 2 has preference 2.5; it must be from 1 to 2"),
        ({"preference": True}, "has preference True"),
        ({"output_2": None}, "row 2 has no text in output_2"),
        ({"annotator": "b"}, "has annotations of 2 annotators"),
    ],
)
def test_wrong_annotations_are_refused(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=expected):
        read_annotations(annotation_file(tmp_path, ROW, ROW | change))


@pytest.mark.parametrize(
    ("policy", "baseline", "preference", "expected"),
    [
        ("Hello!", "No.", 1.75, ("win", 0.75)),
        ("No.", "Hello!", 1.75, ("loss", 0.25)),
        ("Hello!", "No.", 0, ("tie", 0.5)),
        ("Hello!", "No.", 1, ("loss", 0.0)),
        ("Hello!", "No.", None, ("unparsable", None)),
        ("Hello!", "Other.", 1.75, ("unavailable", None)),
    ],
)
def test_a_preference_is_the_score_of_the_second_output(
    policy: str, baseline: str, preference: float | None, expected: tuple[str, float | None], tmp_path: Path
) -> None:
    found = read_annotations(annotation_file(tmp_path, ROW | {"preference": preference}))
    pair = AnswerPair("p", "", 0, "Hi?", policy, baseline)
    (verdict,) = from_annotations(found, probabilities=True)([pair])
    assert (verdict.outcome, verdict.score) == expected
    (rounded,) = from_annotations(found, probabilities=False)([pair])
    assert rounded.score in (0.0, 0.5, 1.0, None)


def test_answers_go_out_and_verdicts_come_back(copied: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    answer = call(export.main, str(copied), "--answers", "alpaca_eval", "--out", str(out))
    assert answer.returncode == 0, answer.stderr
    assert call(export.main, str(copied), "--answers", "alpaca_eval", "--out", str(out)).returncode == 2
    assert call(export.main, str(copied), "always-refuse", "--answers", "inspect").returncode == 2
    rows = []
    for suffix in ("", ".sample-1"):  # as AlpacaEval pairs them, by instruction
        sides = [json.loads((out / f"helpfulness/{name}{suffix}.json").read_text()) for name in
                 ("reference_outputs", "always-refuse")]  # fmt: skip
        outputs = [{row["instruction"]: row["output"] for row in side} for side in sides]
        rows += [
            ROW | {"instruction": prompt, "output_1": outputs[0][prompt], "output_2": outputs[1][prompt]}
            for prompt in outputs[0]
        ]
    path = annotation_file(tmp_path, *rows, ROW)
    answer = call(judge.main, str(copied), "--import", str(path), "--name", "alpaca", "--criterion", "helpfulness")
    assert "1 of 25 annotations are of no answers of this sweep" in answer.stdout, answer.stderr
    panel = load(copied).comparisons["panel"].query("panel == 'alpaca'").set_index("label")
    assert panel.loc["always-refuse", "helpfulness"] == pytest.approx(0.75)
    path = annotation_file(tmp_path, *rows[:3])
    answer = call(judge.main, str(copied), "--import", str(path), "--name", "part", "--criterion", "helpfulness")
    assert answer.returncode == 1
    assert "have all answers of sacpo export --answers alpaca_eval annotated, and import that file" in answer.stdout
    assert "run the same command again" not in answer.stdout
    answer = call(judge.main, str(copied), "--import", str(annotation_file(tmp_path, ROW)))
    assert answer.returncode == 2
    assert "none of its 1 annotations compares an answer of this sweep" in answer.stderr


def test_imported_verdicts_are_no_main_judge(tmp_path: Path) -> None:
    settings = {"kind": "annotations", "path": str(annotation_file(tmp_path, ROW))}
    with pytest.raises(SpaceError, match="cannot be tried on canned pairs; use it on a panel"):
        parse_space(small(evaluation__helpfulness__judge=settings))
    assert parse_space(small(evaluation__helpfulness__panel={"alpaca": settings}))
