"""The `inspection` step: shows what the model will see, and checks it before anything is trained.

It reads the base model, the examples of all data steps and the evaluation prompts. All problems that it finds are
reported at once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from transformers import AutoConfig

from sacpo.data.chat_templates import answer_opening, opened_thought
from sacpo.data.tokenise import encode, render
from sacpo.errors import StepError
from sacpo.execution.artifacts import EXAMPLES, INSPECTION, PROMPT_END
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.planning.metrics import DataMetrics, InspectionMetrics
from sacpo.planning.payloads import InspectionPayload
from sacpo.spaces.evaluation import Generation
from sacpo.steps.engines import batched
from sacpo.steps.policies import load_policy, stop_ids

_SHOWN = 2  # examples of each source that are rendered
_ANSWER_TOKENS = 24
_OF_THE_PROMPT = frozenset(
    ("system", "system_prompt", "history", "input", "context", "documents", "tools", "image", "images")
)
"""Names of columns that belong to a prompt in data sets of the hub."""
_PERCENTILES = (50, 90, 99, 100)


def run(job: Job[InspectionPayload]) -> StepReport:
    """Write `inspection.json`.

    Raises:
        StepError: with every problem, one a line: too few examples for a batch, texts longer than the model's
            positions.
    """
    payload = job.payload
    report = StepReport(devices=1)
    positions = max_positions(job.parents["model"])
    model, tokenizer = load_policy({"policy": job.parents["model"]}, loading=payload.loading)
    report.first_update_at = time.time()
    sources, problems = [], []
    notes = list(_template_notes(tokenizer, payload.prompt_template))
    for role, path in job.parents.items():
        if role == "model":
            continue
        table = pq.read_table(path / EXAMPLES)
        rows = table.slice(0, _SHOWN).to_pylist()
        record = next(r for r in job.parent_records if r.step_id == job.step.parents[role])
        assert isinstance(record.metrics, DataMetrics)
        sources.append(
            {
                "source": record.label,
                "rows": record.metrics.rows,
                "examples": record.metrics.examples,
                "held_out": record.metrics.held_out,
                "left_out": record.metrics.invalid_rows
                | {"prompt of the evaluation": record.metrics.evaluation_prompt_rows},
                "tokens": _percentiles(_table_lengths(table)),
                "needed_length": record.metrics.needed_length,
                "unread_columns": record.metrics.unread_columns,
                "shown": [shown for row in rows for shown in _render_row(row, tokenizer)],
            }
        )
        notes += _data_notes(record.label, record.metrics)
        problems += [
            f"{setting} is {batch_size}, but {record.label} has {table.num_rows} examples; give more examples or a "
            "smaller batch"
            for setting, batch_size in payload.batch_sizes.get(role, ())
            if table.num_rows < batch_size
        ]
    if positions is not None and payload.max_length > positions:
        problems.append(f"data.max_length is {payload.max_length}, but the model has {positions} positions; lower it")
    evaluation = []
    for criterion, texts in _by_criterion(job):
        ids = encode(
            [render(text, tokenizer=tokenizer, template=payload.prompt_template) for text in texts],
            tokenizer=tokenizer,
            template=payload.prompt_template,
        )
        longest = max(map(len, ids))
        evaluation.append(
            {
                "criterion": criterion,
                "prompts": len(ids),
                "tokens": _percentiles([len(row) for row in ids]),
                "shown": [_tokens(row, tokenizer) + f" {PROMPT_END}" for row in ids[:_SHOWN]],
            }
        )
        if positions is not None and longest + payload.max_new_tokens > positions:
            problems.append(
                f"evaluation.generation.max_new_tokens {payload.max_new_tokens} and the longest prompt of {criterion} "
                f"({longest} tokens) exceed the model's {positions} positions; lower max_new_tokens to "
                f"{max(0, positions - longest)} or less, or shorten the prompt"
            )
    if problems:
        raise StepError("\n".join([f"{len(problems)} problem{'s' if len(problems) > 1 else ''}", *problems]))
    content = {
        "positions": positions,
        "end_tokens": tokenizer.convert_ids_to_tokens(stop_ids(model)),
        "notes": notes,
        "data": sources,
        "evaluation": evaluation,
        "answer": _answer(model, tokenizer, job),
    }
    (job.folder / INSPECTION).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    report.metrics = InspectionMetrics(
        sources=len(sources), prompts=len(job.prompts), positions=positions, notes=tuple(notes)
    )
    return report


def _template_notes(tokenizer: Any, template: str) -> Iterator[str]:
    """What the chat template does that training or answering must make up for."""
    if template != "chat":
        return
    if thought := opened_thought(tokenizer):
        yield (
            f"the chat template ends a prompt with {thought.strip()!r}, which stands before no answer that is trained "
            "on; it is left out, so that policies are asked as they are trained"
        )
    if opening := answer_opening(tokenizer):
        yield (
            f"the chat template writes {opening.strip()!r} before an answer and not at the end of a prompt; it is "
            "added to prompts, so that it is no part of an answer"
        )
    ids = encode([render("a", tokenizer=tokenizer, template=template)], tokenizer=tokenizer, template=template)[0]
    bos = tokenizer.bos_token_id
    if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] != ids[:1]:
        yield (
            f"the tokenizer begins a text with {tokenizer.bos_token}, and the chat template begins a prompt without "
            "it; if the model was trained with it, write it into the template"
        )


def _data_notes(label: str, metrics: DataMetrics) -> Iterator[str]:
    """What the rows hold that is not trained on as it stands."""
    if ignored := [name for name in metrics.unread_columns if name.casefold() in _OF_THE_PROMPT]:
        yield (
            f"{label}: the columns {', '.join(ignored)} are not read, though their names say that they belong to the "
            "prompt; write them into the prompt if the model is to see them"
        )
    if metrics.merged_prompts:
        yield (
            f"{label}: {metrics.merged_prompts} of {metrics.examples} prompts end in tokens that merge with their "
            "response, so training and generation differ there; end the prompt template where a token ends"
        )


def max_positions(folder: Path) -> int | None:
    """Positions that a model can tell apart; None if its configuration states no limit."""
    config = AutoConfig.from_pretrained(folder).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def _by_criterion(job: Job[InspectionPayload]) -> Iterator[tuple[str, list[str]]]:
    """The evaluation prompts of each criterion; the criterion stands in the prompts' category."""
    for criterion in dict.fromkeys(prompt.category for prompt in job.prompts):
        yield criterion, [prompt.text for prompt in job.prompts if prompt.category == criterion]


def _table_lengths(table: pa.Table) -> list[int]:
    """Tokens of each example's prompt and its longest response."""
    lengths = {name: pc.list_value_length(table[name]) for name in table.column_names if name.endswith("_ids")}
    if "input_ids" in lengths:
        total = lengths["input_ids"]
    else:
        prompts = lengths.pop("prompt_ids")
        total = pc.add(prompts, pc.max_element_wise(*lengths.values()))
    result: list[int] = total.to_pylist()
    return result


def _percentiles(lengths: list[int]) -> dict[str, int]:
    return {f"p{p}": int(np.percentile(lengths, p, method="higher")) for p in _PERCENTILES}


def _render_row(row: dict[str, Any], tokenizer: Any) -> Iterator[str]:
    """An example's texts with their token boundaries and the end of the prompt."""
    if "input_ids" in row:
        start = next((i for i, label in enumerate(row["labels"]) if label != -100), len(row["labels"]))
        yield _joined(row["input_ids"][:start], row["input_ids"][start:], tokenizer)
        return
    for name in ("chosen_ids", "rejected_ids", "completion_ids"):
        if name in row:
            label = f" (desirable: {row['label']})" if "label" in row else ""
            text = _joined(row["prompt_ids"], row[name], tokenizer)
            yield f"{name.removesuffix('_ids')}{label}: {text}"


def _joined(prompt: list[int], response: list[int], tokenizer: Any) -> str:
    return f"{_tokens(prompt, tokenizer)} {PROMPT_END} {_tokens(response, tokenizer)}"


def _tokens(ids: list[int], tokenizer: Any) -> str:
    """Token texts, separated by a vertical line."""
    return "|".join(tokenizer.decode([i]) for i in ids)


def _answer(model: Any, tokenizer: Any, job: Job[InspectionPayload]) -> dict[str, str]:
    """A short greedy answer of the model to the first evaluation prompt."""
    template, prompt = job.payload.prompt_template, job.prompts[0].text
    ids = encode([render(prompt, tokenizer=tokenizer, template=template)], tokenizer=tokenizer, template=template)
    tokens = min(_ANSWER_TOKENS, job.payload.max_new_tokens)
    answers, _ = batched(model, tokenizer, ids, Generation(max_new_tokens=tokens))
    return {"prompt": prompt, "response": _tokens(answers[0], tokenizer)}
