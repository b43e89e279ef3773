"""The `preferences` and `data` steps: from rows as people store them to token ids that a stage trains on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import AutoTokenizer

from sacpo.data import preferences, tokenise
from sacpo.data import rows as sources
from sacpo.errors import DataError
from sacpo.execution.artifacts import EXAMPLES, HELD_OUT, PAIRS, read_probabilities
from sacpo.execution.job import Facts, Job
from sacpo.synthetic import world as synthetic


def sample(job: Job) -> Facts:
    """Sample the synthetic world's pairs from the SFT policy and label them."""
    probabilities = read_probabilities(job.parents["probabilities"])
    payload = job.payload
    rows = synthetic.sample_preferences(probabilities, payload["rows"], payload["garbled_fraction"], payload["seed"])
    pq.write_table(pa.Table.from_pylist(rows), job.folder / PAIRS)
    return Facts(metrics={"rows": len(rows)})


def run(job: Job) -> Facts:
    """Read, check, split and tokenise one source for one kind of stage.

    Raises:
        DataError: the source cannot be read, more of its rows are bad than allowed, or nothing is left.
    """
    payload = job.payload
    rows, origin = _rows(job)
    shape = payload["shape"]
    examples, bad = preferences.convert(
        rows, format=payload.get("format", "demonstrations"), objective=payload["objective"], shape=shape
    )
    allowed = payload.get("max_invalid_fraction", 0.0)
    sources.check_share(bad, len(rows), allowed, origin)
    examples, excluded = preferences.exclude(examples, frozenset(map(preferences.prompt_key, job.local["exclude"])))
    if payload["judge_fraction"]:
        examples = preferences.split_for(examples, judge_fraction=payload["judge_fraction"], side=payload["side"])
    held_out = [e for e in examples if _is_held_out(e["prompt"], payload["held_out_fraction"])]
    parts = {EXAMPLES: [e for e in examples if not _is_held_out(e["prompt"], payload["held_out_fraction"])]}
    if payload["held_out_fraction"]:
        parts[HELD_OUT] = held_out
    tokenizer = AutoTokenizer.from_pretrained(job.parents["model"])
    tokenised = {}
    unfit = Counter[str]()
    for name, part in parts.items():
        tokenised[name], left_out = tokenise.tokenise(
            part,
            shape=shape,
            tokenizer=tokenizer,
            template=payload["prompt_template"],
            max_length=payload["max_length"],
        )
        unfit += left_out
    sources.check_share(unfit, len(examples), allowed, origin)
    bad = bad + unfit
    facts = Facts(metrics={"rows": len(rows), "bad_rows": dict(bad), "evaluation_prompt_rows": excluded})
    for name, part in tokenised.items():
        if not part:
            raise DataError(
                f"{origin}: no example is left for {name.removesuffix('.parquet')}: {len(rows)} rows, bad "
                f"{dict(bad)}, {excluded} of evaluation prompts, the rest on the other side of data.judge_fraction"
            )
        pq.write_table(pa.Table.from_pylist(part), job.folder / name)
        facts.metrics[name.removesuffix(".parquet")] = len(part)
    return facts


def _is_held_out(prompt: Any, share: float) -> bool:
    return preferences.in_share(f"held out: {preferences.prompt_key(prompt)}", share)


def _rows(job: Job) -> tuple[list[dict[str, Any]], str]:
    """The source's rows and what to call it in an error."""
    payload = job.payload
    if "preferences" in job.parents:
        return pq.read_table(job.parents["preferences"] / PAIRS).to_pylist(), "the synthetic world's preferences"
    if "world" in payload:
        return synthetic.demonstrations(payload["rows"], payload["seed"]), "the synthetic world's demonstrations"
    path = job.local["path"]
    rows = sources.read_rows(path, split=payload["split"], revision=job.local["revision"])
    return sources.draw(rows, payload["limit"], payload["seed"]), path
