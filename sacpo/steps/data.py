"""The `preferences` and `data` steps: from stored rows to the token ids that a stage trains on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from sacpo.data import preferences, rows, tokenise
from sacpo.data.formats import format_hint, nearest_format, readable_columns
from sacpo.data.scores import UNSCORED, Scoring, whole_prompts
from sacpo.data.sources import rename, rows_of_source, select
from sacpo.data.stored_rows import CHUNK, Rows
from sacpo.errors import DataError
from sacpo.execution.artifacts import EXAMPLES, HELD_OUT, PAIRS, read_probabilities
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.planning.metrics import DataMetrics, PreferencesMetrics
from sacpo.planning.payloads import DemonstrationsPayload, FilesPayload, PreferencesPayload, SampledPayload
from sacpo.spaces.methods import ExampleShape
from sacpo.spaces.space import RowFormat
from sacpo.synthetic import world

AnyDataPayload = FilesPayload | DemonstrationsPayload | SampledPayload
_FIRST = 1000  # rows whose columns are looked at
_IDS = pa.list_(pa.int32())
_SCHEMAS: dict[ExampleShape, pa.Schema] = {
    "pairs": pa.schema({"prompt_ids": _IDS, "chosen_ids": _IDS, "rejected_ids": _IDS}),
    "labelled": pa.schema({"prompt_ids": _IDS, "completion_ids": _IDS, "label": pa.bool_()}),
    "demonstrations": pa.schema({"input_ids": _IDS, "labels": _IDS}),
}
"""Columns of the rows of `sacpo.data.tokenise`."""


def sample(job: Job[PreferencesPayload]) -> StepReport:
    """Sample the synthetic world's pairs from the SFT policy and label them."""
    probabilities = read_probabilities(job.parents["probabilities"])
    settings = job.payload.settings
    pairs = world.sample_preferences(probabilities, settings.rows, settings.garbled_fraction, settings.seed)
    pq.write_table(pa.Table.from_pylist(pairs), job.folder / PAIRS)
    return StepReport(metrics=PreferencesMetrics(rows=len(pairs)))


def run(job: Job[AnyDataPayload]) -> StepReport:
    """Read, check, split and tokenise one source for one kind of stage.

    Rows are read, converted, tokenised and written a chunk at a time, so that no more than one chunk of rows and of
    token ids is in memory.

    Raises:
        DataError: the source cannot be read, a larger fraction of its rows is invalid than allowed, or no row is left.
    """
    payload = job.payload
    source = _source(job)
    names = [EXAMPLES, HELD_OUT] if payload.held_out_fraction else [EXAMPLES]
    output = _Output(job, names)
    counts = _Counts()
    excluded_prompts = frozenset(preferences.prompt_key(prompt.text) for prompt in job.prompts)
    try:
        for examples, invalid in _converted(source, payload):
            counts.invalid += invalid
            examples, excluded = preferences.exclude(examples, excluded_prompts)
            counts.excluded += excluded
            if payload.judge_fraction:
                examples = preferences.split_for(examples, judge_fraction=payload.judge_fraction, side=payload.side)
            counts.examples += len(examples)
            output.write(examples, counts)
    finally:
        output.close()
    needed = _needed_length(counts.tally.lengths)
    problems = _problems(source, counts, needed, output)
    if problems:
        raise DataError("\n".join(problems))
    return StepReport(
        metrics=DataMetrics(
            rows=len(source.rows),
            invalid_rows=dict(counts.invalid + counts.too_long),
            evaluation_prompt_rows=counts.excluded,
            examples=output.rows[EXAMPLES],
            held_out=output.rows.get(HELD_OUT),
            needed_length=needed,
            unread_columns=_unread_columns(source, payload),
            merged_prompts=counts.tally.merged,
        )
    )


@dataclass
class _Counts:
    """What the chunks add up to: rows left out before (`invalid`) and after tokenisation, and the examples between.

    Attributes:
        examples: Examples that went into tokenisation: of this side, without evaluation prompts.
        tally: What was counted while they were tokenised.
    """

    invalid: Counter[str] = field(default_factory=Counter)
    too_long: Counter[str] = field(default_factory=Counter)
    examples: int = 0
    excluded: int = 0
    tally: tokenise.Tally = field(default_factory=tokenise.Tally)


class _Output:
    """The Parquet files of a data step, written a chunk at a time.

    Attributes:
        rows: Rows written to each file.
    """

    def __init__(self, job: Job[AnyDataPayload], names: list[str]) -> None:
        self.job = job
        self.rows = dict.fromkeys(names, 0)
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._tokenizer = AutoTokenizer.from_pretrained(job.parents["model"])

    def write(self, examples: list[dict[str, Any]], counts: _Counts) -> None:
        """Tokenise examples and add them to their file."""
        payload = self.job.payload
        schema = _SCHEMAS[payload.shape]
        for name in self.rows:
            held_out = name == HELD_OUT
            part = [e for e in examples if _is_held_out(e["prompt"], payload.held_out_fraction) == held_out]
            tokenised, left_out = tokenise.tokenise(
                part,
                shape=payload.shape,
                tokenizer=self._tokenizer,
                template=payload.prompt_template,
                max_length=payload.max_length,
                tally=counts.tally,
            )
            counts.too_long += left_out
            if tokenised:
                if name not in self._writers:
                    self._writers[name] = pq.ParquetWriter(self.job.folder / name, schema)
                self._writers[name].write_table(pa.Table.from_pylist(tokenised, schema))
                self.rows[name] += len(tokenised)

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()


def _converted(source: _Source, payload: AnyDataPayload) -> Iterator[tuple[list[dict[str, Any]], Counter[str]]]:
    """Examples and invalid rows by reason, a chunk at a time. Rows of the format `scored` belong together."""
    for part in whole_prompts(source.rows) if source.format == "scored" else source.rows.chunks():
        try:
            examples, invalid = preferences.convert(
                part,
                format=source.format,
                objective=payload.objective,
                shape=payload.shape,
                scoring=source.scoring,
            )
        except DataError as error:
            columns = source.rows.columns()
            hint = "" if nearest_format(columns) == source.format else format_hint(source.format, columns)
            raise DataError(f"{source.name}: {error}{hint}") from None
        for first in range(0, max(1, len(examples)), CHUNK):
            yield examples[first : first + CHUNK], invalid if first == 0 else Counter()


def _unread_columns(source: _Source, payload: AnyDataPayload) -> tuple[str, ...]:
    """Columns of the first rows that the format does not read; none for rows that the sweep made itself."""
    if not isinstance(payload, FilesPayload):
        return ()
    read = {*readable_columns(source.format, payload.objective), *payload.files.where}
    return tuple(name for name in source.rows[:_FIRST].columns() if name not in read)


def _needed_length(lengths: list[int]) -> dict[str, int]:
    """`max_length` that would keep 99 % and all of the examples; empty if there is no example."""
    return {f"p{p}": int(np.percentile(lengths, p, method="higher")) for p in (99, 100) if lengths}


def _problems(source: _Source, counts: _Counts, needed: dict[str, int], output: _Output) -> list[str]:
    """Everything that keeps the source from being used."""
    problems, total = [], len(source.rows)
    unfitting = any(reason.startswith(("missing field", "wrong type", "not a transcript")) for reason in counts.invalid)
    hint = format_hint(source.format, source.rows.columns()) if unfitting else ""
    correct = "correct the file or its `format`"
    ways_out = [correct] if counts.too_long.keys() - tokenise.TOO_LONG else []
    if counts.too_long.keys() & tokenise.TOO_LONG:
        ways_out.append(f"raise data.max_length ({needed['p99']} would keep 99 % of them, {needed['p100']} all)")
    for invalid, rows_of, way_out, more in (
        (counts.invalid, total, correct, hint),
        (counts.too_long, counts.examples, ", ".join(ways_out), ""),
    ):
        try:
            rows.check_invalid_fraction(invalid, rows_of, source.max_invalid_fraction, source.name, way_out, more)
        except DataError as error:
            problems.append(str(error))
    problems += [
        f"{source.name}: no example is left for {name.removesuffix('.parquet')}: {total} rows, invalid "
        f"{dict(counts.invalid + counts.too_long)}, {counts.excluded} of evaluation prompts, the rest on the other "
        "side of data.judge_fraction"
        for name, written in output.rows.items()
        if not written and not problems  # else the reason is named already
    ]
    return problems


def _is_held_out(prompt: Any, fraction: float) -> bool:
    return preferences.in_fraction(f"held out: {preferences.prompt_key(prompt)}", fraction)


@dataclass(frozen=True)
class _Source:
    """Rows with their format, the fraction of invalid ones that is allowed, and the source's name in errors."""

    rows: Rows
    format: RowFormat
    name: str
    max_invalid_fraction: float = 0.0
    scoring: Scoring = UNSCORED


def _source(job: Job[AnyDataPayload]) -> _Source:
    payload = job.payload
    match payload:
        case SampledPayload():
            pairs = pq.read_table(job.parents["preferences"] / PAIRS).to_pylist()
            return _Source(Rows.of(pairs), "pku-saferlhf", "the synthetic world's preferences")
        case DemonstrationsPayload():
            demonstrations = world.demonstrations(payload.settings.rows, payload.settings.seed)
            return _Source(Rows.of(demonstrations), "demonstrations", "the synthetic world's demonstrations")
        case FilesPayload():
            files = payload.files
            name = files.path if isinstance(files.path, str) else ", ".join(files.path)
            allowed = readable_columns(files.format, payload.objective)
            inner = "completions" if files.format == "scored" else None
            read = select(rows_of_source(files), files.where, name)
            read = rename(read, files.columns, allowed, name, inner)
            drawn = rows.draw(read, files.limit, files.seed)
            scoring = Scoring(files.margin, files.threshold)
            return _Source(drawn, files.format, name, files.max_invalid_fraction, scoring)
        case _:
            assert_never(payload)
