"""Writes answers in the formats of other evaluation harnesses, which score them unchanged.

- `alpaca_eval`: AlpacaEval's `model_outputs` (`instruction`, `output`, `generator`).
- `arena_hard`: Arena-Hard-Auto's `question.jsonl` and `model_answer/MODEL.jsonl`, as of its version 2.
- `inspect`: logs of Inspect, through inspect-ai's own API; `inspect score` scores them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from sacpo.errors import SacpoError
from sacpo.hashing import content_id
from sacpo.judges.thoughts import without_thoughts

Format = Literal["alpaca_eval", "arena_hard", "inspect"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True)
class Answers:
    """One policy's answers to one criterion's prompts.

    Attributes:
        criterion: The criterion.
        label: The policy's label.
        name: The label as a file name, unique among the policies.
        is_baseline: It is the SFT policy.
        rows: Rows of `responses.parquet`.
        created_at: When the sweep's last run began, in seconds since the epoch.
    """

    criterion: str
    label: str
    name: str
    is_baseline: bool
    rows: Sequence[dict[str, Any]]
    created_at: float


def write_answers(answers: Sequence[Answers], answer_format: Format, folder: Path) -> list[Path]:
    """Write answers.

    Args:
        answers: The answers of all policies.
        answer_format: The format.
        folder: A folder that exists.

    Returns:
        The files.

    Raises:
        SacpoError: inspect-ai is needed and not installed.
    """
    writer = {"alpaca_eval": _alpaca_eval, "arena_hard": _arena_hard, "inspect": _inspect}[answer_format]
    return [path for part in answers for path in writer(part, folder)]


def _alpaca_eval(answers: Answers, folder: Path) -> list[Path]:
    """One file for each sample, since AlpacaEval pairs outputs by their instruction alone."""
    samples: dict[int, list[dict[str, str]]] = {}
    for row in answers.rows:
        output = {"instruction": row["prompt"], "output": answer_text(row), "generator": answers.label}
        samples.setdefault(int(row["sample"]), []).append(output)
    paths = []
    for sample, outputs in samples.items():
        suffix = f".sample-{sample}" if sample else ""
        names = [answers.name, *(["reference_outputs"] if answers.is_baseline else [])]
        for name in names:
            path = folder / answers.criterion / f"{name}{suffix}.json"
            _write(path, json.dumps(outputs, ensure_ascii=False, indent=1))
            paths.append(path)
    return paths


def _arena_hard(answers: Answers, folder: Path) -> list[Path]:
    """The first sample of each prompt, since Arena-Hard takes one answer a question."""
    rows = [row for row in answers.rows if row["sample"] == 0]
    bench = folder / answers.criterion
    lines = [
        {
            "uid": row["prompt_id"],
            "ans_id": content_id("answer", {"policy": row["trial_id"], "prompt": row["prompt_id"]}),
            "model": answers.name,
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": {"answer": answer_text(row)}},
            ],
            "tstamp": answers.created_at,
            "metadata": {**_token_count(row), **_markdown(answer_text(row))},
        }
        for row in rows
    ]
    paths = [bench / "model_answer" / f"{answers.name}.jsonl"]
    _write(paths[0], _json_lines(lines))
    if answers.is_baseline:
        questions = [
            {
                "uid": row["prompt_id"],
                "category": answers.criterion,
                "subcategory": row["category"],
                "prompt": row["prompt"],
            }
            for row in rows
        ]
        paths.append(bench / "question.jsonl")
        _write(paths[1], _json_lines(questions))
    return paths


def _token_count(row: dict[str, Any]) -> dict[str, int]:
    """The answer's tokens; nothing if the endpoint of a served policy counted none."""
    return {} if row["tokens"] != row["tokens"] or row["tokens"] is None else {"token_len": int(row["tokens"])}


def _markdown(text: str) -> dict[str, dict[str, int]]:
    """Counts of Markdown elements outside code blocks, which Arena-Hard's style control reads."""
    prose = re.sub(r"```[^`]*```", "``````", text)
    return {
        "header_count": {f"h{n}": len(re.findall(rf"^#{{{n}}}\s", prose, re.M)) for n in range(1, 7)},
        "list_count": {
            "ordered": len(re.findall(r"^\s*\d+\.\s", prose, re.M)),
            "unordered": len(re.findall(r"^\s*[-*+]\s", prose, re.M)),
        },
        "bold_count": {
            "**": len(re.findall(r"\*\*[^*\n]+\*\*", prose)),
            "__": len(re.findall(r"__[^_\n]+__", prose)),
        },
    }


def _inspect(answers: Answers, folder: Path) -> list[Path]:
    try:
        from inspect_ai import log, model
    except ImportError as error:
        raise SacpoError(
            f"--answers inspect needs inspect-ai, which cannot be imported ({error}); install sacpo[inspect]"
        ) from None
    name = f"mockllm/{answers.name}"  # Inspect's provider that calls no model: the answers are there already
    samples = [
        log.EvalSample(
            id=row["prompt_id"],
            epoch=int(row["sample"]) + 1,
            input=row["prompt"],
            target="",
            messages=[
                model.ChatMessageUser(content=row["prompt"]),
                model.ChatMessageAssistant(content=answer_text(row), model=name),
            ],
            output=model.ModelOutput.from_content(
                name, answer_text(row), stop_reason="stop" if row["finished"] else "max_tokens"
            ),
            metadata={"category": row["category"]},
        )
        for row in answers.rows
    ]
    ids = list(dict.fromkeys(str(sample.id) for sample in samples))
    created = datetime.fromtimestamp(answers.created_at, UTC).isoformat()
    spec = log.EvalSpec(
        created=created,
        task=f"sacpo_{answers.criterion}",
        dataset=log.EvalDataset(name=answers.criterion, samples=len(ids), sample_ids=list(ids)),
        model=name,
        config=log.EvalConfig(epochs=max(sample.epoch for sample in samples)),
        metadata={"policy": answers.label, "is_baseline": answers.is_baseline},
    )
    path = folder / answers.criterion / f"{answers.name}.eval"
    path.parent.mkdir(parents=True, exist_ok=True)
    stats = log.EvalStats(started_at=created, completed_at=created)
    log.write_eval_log(log.EvalLog(status="success", eval=spec, stats=stats, samples=samples), str(path))
    return [path]


def answer_text(row: dict[str, Any]) -> str:
    """An answer as judges see it, without thoughts."""
    return without_thoughts(row["response"])


def _json_lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
