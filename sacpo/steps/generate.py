"""The `generate` step: a policy's answers to the prompts of one criterion."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer

from sacpo.data.tokenise import encode, render
from sacpo.execution.artifacts import RESPONSES
from sacpo.execution.job import Facts, Job
from sacpo.steps.engines import ENGINES
from sacpo.steps.model import load_policy


@torch.no_grad()
def run(job: Job) -> Facts:
    """Generate by the chosen engine; an answer ends at the end-of-sequence token or at the limit.

    Where the answers are plain samples (temperature 1) and an SFT policy is given, KL(policy || SFT) is estimated on
    them: the sum over an answer's tokens of the exact KL between the two next-token distributions, averaged over
    answers.
    """
    if "refusal" in job.payload:
        return _refuse(job)
    facts = Facts(devices=1)
    draws = job.payload.get("keep_longest_of", 1)
    settings = job.payload["generation"]
    if draws > 1:  # draws from a greedy policy would all be one
        settings = settings | {"samples": settings["samples"] * draws, "temperature": settings["temperature"] or 1.0}
    model, tokenizer = load_policy(job.parents, job.payload.get("q"))
    sft = load_policy({"policy": job.parents["sft"]})[0] if "sft" in job.parents else None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    prompts = [prompt for prompt in _prompts(job) for _ in range(settings["samples"])]
    template = job.payload["prompt_template"]
    texts = [render(text, tokenizer=tokenizer, template=template) for _, text, _ in prompts]
    ids = encode(texts, tokenizer=tokenizer, template=template)
    facts.first_update_at = time.time()
    answers = ENGINES[settings["engine"]](model, tokenizer, ids, settings)
    answers = [_ended(answer, tokenizer.eos_token_id) for answer in answers]
    kl = [] if sft is None else [_kl(model, sft, *pair) for pair in zip(ids, answers, strict=True)]
    rows = [
        {
            "prompt_id": prompt_id,
            "category": category,
            "prompt": text,
            "sample": i % settings["samples"],
            "response": tokenizer.decode(answer, skip_special_tokens=True).strip(),
            "tokens": len(answer),
            "finished": answer[-1:] == [tokenizer.eos_token_id],
        }
        for i, ((prompt_id, text, category), answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    kept = _longest(rows, draws)
    pq.write_table(pa.Table.from_pylist(kept), job.folder / RESPONSES)
    facts.effective = {"generation": settings, "device": str(model.device), "dtype": str(model.dtype)}
    facts.metrics = {
        "responses": len(kept),
        "tokens": sum(row["tokens"] for row in rows),
        "finished_share": sum(row["finished"] for row in kept) / len(kept),
        "kl_to_sft": sum(kl) / len(kl) if kl else None,
    }
    return facts


def _longest(rows: list[dict[str, Any]], draws: int) -> list[dict[str, Any]]:
    """Of every `draws` answers in a row, the one with the most characters; samples are numbered anew."""
    groups = [rows[start : start + draws] for start in range(0, len(rows), draws)]
    return [
        max(group, key=lambda row: len(row["response"])) | {"sample": group[0]["sample"] // draws} for group in groups
    ]


def _refuse(job: Job) -> Facts:
    """The same refusal to every prompt, in the policy's tokens: its tokenizer is loaded, its weights are not."""
    facts, refusal = Facts(), job.payload["refusal"]
    ids = AutoTokenizer.from_pretrained(job.parents["policy"])(refusal, add_special_tokens=False)["input_ids"]
    rows = [
        {
            "prompt_id": prompt_id,
            "category": category,
            "prompt": text,
            "sample": sample,
            "response": refusal,
            "tokens": len(ids) + 1,  # and the end-of-sequence token, as in any answer
            "finished": True,
        }
        for prompt_id, text, category in _prompts(job)
        for sample in range(job.payload["generation"]["samples"])
    ]
    pq.write_table(pa.Table.from_pylist(rows), job.folder / RESPONSES)
    facts.metrics = {"responses": len(rows), "tokens": 0, "finished_share": 1.0, "kl_to_sft": None}
    return facts


def _prompts(job: Job) -> list[list[str]]:
    prompts: list[list[str]] = job.local["prompts"]
    return prompts


def _ended(answer: list[int], eos: int) -> list[int]:
    """An answer as far as its end-of-sequence token, which belongs to it."""
    return answer[: answer.index(eos) + 1] if eos in answer else answer


def _kl(model: Any, sft: Any, prompt: list[int], answer: list[int]) -> float:
    """The sum over an answer's tokens of KL(model || sft) between next-token distributions, in nats."""
    ids = torch.tensor([prompt + answer], device=model.device)
    window = slice(len(prompt) - 1, ids.shape[1] - 1)
    p, q = (m(input_ids=ids).logits[0, window].float().log_softmax(-1) for m in (model, sft))
    return float((p.exp() * (p - q)).sum())
