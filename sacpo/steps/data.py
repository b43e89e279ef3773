"""The `preferences` and `data` steps: from stored rows to the token ids that a stage trains on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from sacpo.data import preferences, rows, tokenise
from sacpo.data.formats import format_hint, nearest_format, readable_columns
from sacpo.data.scores import UNSCORED, Scoring
from sacpo.data.sources import columns_of, read_rows, rename, select
from sacpo.errors import DataError
from sacpo.execution.artifacts import EXAMPLES, HELD_OUT, PAIRS, read_probabilities
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.planning.payloads import DemonstrationsPayload, FilesPayload, PreferencesPayload, SampledPayload
from sacpo.planning.records import DataMetrics, PreferencesMetrics
from sacpo.spaces.space import RowFormat
from sacpo.synthetic import world

AnyDataPayload = FilesPayload | DemonstrationsPayload | SampledPayload


def sample(job: Job[PreferencesPayload]) -> StepReport:
    """Sample the synthetic world's pairs from the SFT policy and label them."""
    probabilities = read_probabilities(job.parents["probabilities"])
    settings = job.payload.settings
    pairs = world.sample_preferences(probabilities, settings.rows, settings.garbled_fraction, settings.seed)
    pq.write_table(pa.Table.from_pylist(pairs), job.folder / PAIRS)
    return StepReport(metrics=PreferencesMetrics(rows=len(pairs)))


def run(job: Job[AnyDataPayload]) -> StepReport:
    """Read, check, split and tokenise one source for one kind of stage.

    Raises:
        DataError: the source cannot be read, a larger fraction of its rows is invalid than allowed, or no row is left.
    """
    payload = job.payload
    source = _source(job)
    try:
        examples, invalid = preferences.convert(
            source.rows,
            format=source.format,
            objective=payload.objective,
            shape=payload.shape,
            scoring=source.scoring,
        )
    except DataError as error:
        columns = columns_of(source.rows)
        fits = nearest_format(columns) == source.format
        raise DataError(f"{source.name}: {error}{'' if fits else format_hint(source.format, columns)}") from None
    unfitting = any(reason.startswith(("missing field", "wrong type", "not a transcript")) for reason in invalid)
    hint = format_hint(source.format, columns_of(source.rows)) if unfitting else ""
    problems = []
    try:
        rows.check_invalid_fraction(invalid, len(source.rows), source.max_invalid_fraction, source.name, hint)
    except DataError as error:
        problems.append(str(error))
    excluded_prompts = frozenset(preferences.prompt_key(prompt.text) for prompt in job.prompts)
    examples, excluded = preferences.exclude(examples, excluded_prompts)
    if payload.judge_fraction:
        examples = preferences.split_for(examples, judge_fraction=payload.judge_fraction, side=payload.side)
    parts = {EXAMPLES: [e for e in examples if not _is_held_out(e["prompt"], payload.held_out_fraction)]}
    if payload.held_out_fraction:
        parts[HELD_OUT] = [e for e in examples if _is_held_out(e["prompt"], payload.held_out_fraction)]
    tokenizer = AutoTokenizer.from_pretrained(job.parents["model"])
    tokenised = {}
    too_long = Counter[str]()
    lengths: list[int] = []
    for name, part in parts.items():
        tokenised[name], left_out = tokenise.tokenise(
            part,
            shape=payload.shape,
            tokenizer=tokenizer,
            template=payload.prompt_template,
            max_length=payload.max_length,
            lengths=lengths,
        )
        too_long += left_out
    needed = {f"p{p}": int(np.percentile(lengths, p, method="higher")) for p in (99, 100) if lengths}
    try:
        hint = f"; data.max_length {needed['p99']} would keep 99 % of them, {needed['p100']} all" if needed else ""
        rows.check_invalid_fraction(too_long, len(examples), source.max_invalid_fraction, source.name, hint)
    except DataError as error:
        problems.append(str(error))
    invalid = invalid + too_long
    for name, part in tokenised.items():
        if not part:
            problems.append(
                f"{source.name}: no example is left for {name.removesuffix('.parquet')}: {len(source.rows)} rows, "
                f"invalid {dict(invalid)}, {excluded} of evaluation prompts, the rest on the other side of "
                "data.judge_fraction"
            )
    if problems:
        raise DataError("\n".join(problems))
    for name, part in tokenised.items():
        pq.write_table(pa.Table.from_pylist(part), job.folder / name)
    return StepReport(
        metrics=DataMetrics(
            rows=len(source.rows),
            invalid_rows=dict(invalid),
            evaluation_prompt_rows=excluded,
            examples=len(tokenised[EXAMPLES]),
            held_out=len(tokenised[HELD_OUT]) if HELD_OUT in tokenised else None,
            needed_length=needed,
        )
    )


def _is_held_out(prompt: Any, fraction: float) -> bool:
    return preferences.in_fraction(f"held out: {preferences.prompt_key(prompt)}", fraction)


@dataclass(frozen=True)
class _Source:
    """Rows with their format, the fraction of invalid ones that is allowed, and the source's name in errors."""

    rows: list[dict[str, Any]]
    format: RowFormat
    name: str
    max_invalid_fraction: float = 0.0
    scoring: Scoring = UNSCORED


def _source(job: Job[AnyDataPayload]) -> _Source:
    payload = job.payload
    match payload:
        case SampledPayload():
            pairs = pq.read_table(job.parents["preferences"] / PAIRS).to_pylist()
            return _Source(pairs, "pku-saferlhf", "the synthetic world's preferences")
        case DemonstrationsPayload():
            demonstrations = world.demonstrations(payload.settings.rows, payload.settings.seed)
            return _Source(demonstrations, "demonstrations", "the synthetic world's demonstrations")
        case FilesPayload():
            files = payload.files
            name = files.path if isinstance(files.path, str) else ", ".join(files.path)
            read = read_rows(
                files.path, split=files.split, revision=files.revision, name=files.name, data_dir=files.data_dir
            )
            allowed = readable_columns(files.format, payload.objective)
            inner = "completions" if files.format == "scored" else None
            read = select(read, files.where, name)
            read = rename(read, files.columns, allowed, name, inner)
            drawn = rows.draw(read, files.limit, files.seed)
            scoring = Scoring(files.margin, files.threshold)
            return _Source(drawn, files.format, name, files.max_invalid_fraction, scoring)
        case _:
            assert_never(payload)
