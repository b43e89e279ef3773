"""The `generate` step: a policy's answers to the prompts of one criterion."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer

from sacpo.data.prompts import Prompt
from sacpo.data.tokenise import encode, render
from sacpo.execution.artifacts import RESPONSES
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.judges.thoughts import without_thoughts
from sacpo.planning.metrics import GenerateMetrics
from sacpo.planning.payloads import GeneratePayload
from sacpo.planning.records import GenerateEffective
from sacpo.steps.answer_kl import answer_kl
from sacpo.steps.effective import effective_generation
from sacpo.steps.engines import ENGINES
from sacpo.steps.policies import load_policy, single, stop_ids


@torch.no_grad()
def run(job: Job[GeneratePayload]) -> StepReport:
    """Generate with the chosen engine; an answer ends at one of the model's end tokens or at the token limit.

    Where the answers are plain samples (temperature 1) and the SFT policy is a parent, KL(policy || SFT) is estimated
    on them: the sum over an answer's tokens of the exact KL between the two next-token distributions, averaged over
    answers.

    Raises:
        StepError: a setting did not take effect, or the engine left a prompt without an answer.
    """
    if job.payload.refusal is not None:
        return _refuse(job, job.payload.refusal)
    report = StepReport(devices=1)
    payload, draws = job.payload, job.payload.keep_longest_of
    settings = payload.generation
    if draws > 1:  # several answers of a greedy policy would all be the same
        drawn = {"samples": settings.samples * draws, "temperature": settings.temperature or 1.0}
        settings = settings.model_copy(update=drawn)
    model, tokenizer = load_policy(job.parents, payload.q, payload.combination, payload.loading, share_base=True)
    parents = single(job.parents, "sft")
    sft = load_policy(parents, loading=payload.loading)[0] if parents else None
    prompts = [prompt for prompt in job.prompts for _ in range(settings.samples)]
    texts = [render(prompt.text, tokenizer=tokenizer, template=payload.prompt_template) for prompt in prompts]
    ids = encode(texts, tokenizer=tokenizer, template=payload.prompt_template)
    report.first_update_at = time.time()
    answers, config = ENGINES[settings.engine](model, tokenizer, ids, settings)
    generation = effective_generation(settings, config, answers, len(job.prompts))
    ends = set(stop_ids(model))
    answers = [_ended(answer, ends) for answer in answers]
    sequences = list(zip(ids, answers, strict=True))
    batch_size, pad = job.resources.per_device_batch, tokenizer.pad_token_id
    kl = answer_kl(model, sft, sequences, batch_size, pad, packing=job.resources.packing) if sft is not None else []
    rows = [
        _row(
            prompt,
            sample=i % settings.samples,
            response=_response(answer, tokenizer),
            answer_ids=answer,
            finished=bool(answer) and answer[-1] in ends,
        )
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    kept = _longest(rows, draws)
    pq.write_table(pa.Table.from_pylist(kept), job.folder / RESPONSES)
    report.effective = GenerateEffective(generation=generation, device=str(model.device), dtype=str(model.dtype))
    report.metrics = GenerateMetrics(
        responses=len(kept),
        tokens=sum(row["tokens"] for row in rows),
        finished_fraction=sum(row["finished"] for row in kept) / len(kept),
        kl_to_sft=sum(kl) / len(kl) if kl else None,
    )
    return report


def _response(answer: list[int], tokenizer: Any) -> str:
    """An answer's text without its thoughts and special tokens."""
    whole = tokenizer.decode(answer, skip_special_tokens=False)  # the tags of a thought may be special tokens
    text = without_thoughts(whole)
    if text == whole:
        return str(tokenizer.decode(answer, skip_special_tokens=True)).strip()
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            text = text.replace(token.content, "")
    return text.strip()


def _row(prompt: Prompt, *, sample: int, response: str, answer_ids: list[int], finished: bool) -> dict[str, Any]:
    """A row of `responses.parquet`."""
    return {
        "prompt_id": prompt.prompt_id,
        "category": prompt.category,
        "prompt": prompt.text,
        "sample": sample,
        "response": response,
        "tokens": len(answer_ids),
        "answer_ids": answer_ids,
        "finished": finished,
    }


def _longest(rows: list[dict[str, Any]], draws: int) -> list[dict[str, Any]]:
    """Of every `draws` consecutive answers, the one with the most characters; samples are numbered anew."""
    groups = [rows[start : start + draws] for start in range(0, len(rows), draws)]
    return [
        max(group, key=lambda row: len(row["response"])) | {"sample": group[0]["sample"] // draws} for group in groups
    ]


def _refuse(job: Job[GeneratePayload], refusal: str) -> StepReport:
    """The same refusal to every prompt. Its tokens are counted by the policy's tokenizer; no weights are loaded."""
    tokenizer = AutoTokenizer.from_pretrained(job.parents["policy"])
    ids = tokenizer(refusal, add_special_tokens=False)["input_ids"]
    ids.append(tokenizer.eos_token_id)  # as in any answer
    rows = [
        _row(prompt, sample=sample, response=refusal, answer_ids=ids, finished=True)
        for prompt in job.prompts
        for sample in range(job.payload.generation.samples)
    ]
    pq.write_table(pa.Table.from_pylist(rows), job.folder / RESPONSES)
    metrics = GenerateMetrics(responses=len(rows), tokens=0, finished_fraction=1.0)
    return StepReport(metrics=metrics, effective=GenerateEffective())


def _ended(answer: list[int], ends: set[int]) -> list[int]:
    """An answer up to and including the first token that ends it."""
    return next((answer[: i + 1] for i, token in enumerate(answer) if token in ends), answer)
