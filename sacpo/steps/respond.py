"""The `respond` step: a policy's answers to the prompts of one criterion."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer

from sacpo.data.tokenise import encode, render
from sacpo.steps.files import RESPONSES
from sacpo.steps.job import Facts, Job
from sacpo.steps.model import load_policy


@torch.no_grad()
def run(job: Job) -> Facts:
    """Generate batch by batch, longest prompts first; an answer ends at the end-of-sequence token or at the limit.

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
    torch.manual_seed(settings["seed"])
    sampling: dict[str, Any] = {"do_sample": settings["temperature"] > 0}
    if sampling["do_sample"]:
        sampling |= {"temperature": settings["temperature"], "top_p": settings["top_p"], "top_k": 0}
    texts = [render(text, tokenizer=tokenizer, template=job.payload["prompt_template"]) for _, text, _ in _prompts(job)]
    queue = sorted(range(len(texts) * settings["samples"]), key=lambda i: -len(texts[i // settings["samples"]]))
    facts.first_work = time.time()
    rows: dict[int, dict[str, Any]] = {}
    kl: list[float] = []
    for start in range(0, len(queue), settings["batch_size"]):
        batch = queue[start : start + settings["batch_size"]]
        ids = encode(
            [texts[i // settings["samples"]] for i in batch],
            tokenizer=tokenizer,
            template=job.payload["prompt_template"],
        )
        inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
        output = model.generate(
            **inputs,
            max_new_tokens=settings["max_new_tokens"],
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
        answers = output[:, inputs["input_ids"].shape[1] :]
        lengths = _lengths(answers, tokenizer.eos_token_id)
        if sft is not None:
            kl += _kl(model, sft, inputs["attention_mask"], output, lengths)
        for i, answer, length in zip(batch, answers, lengths, strict=True):
            prompt_id, text, category = _prompts(job)[i // settings["samples"]]
            rows[i] = {
                "prompt_id": prompt_id,
                "category": category,
                "prompt": text,
                "sample": i % settings["samples"],
                "response": tokenizer.decode(answer[:length], skip_special_tokens=True).strip(),
                "tokens": length,
                "finished": length > 0 and int(answer[length - 1]) == tokenizer.eos_token_id,
            }
    kept = _longest([rows[i] for i in sorted(rows)], draws)
    pq.write_table(pa.Table.from_pylist(kept), job.folder / RESPONSES)
    facts.effective = {"generation": settings, "device": str(model.device), "dtype": str(model.dtype)}
    facts.metrics = {
        "responses": len(kept),
        "tokens": sum(row["tokens"] for row in rows.values()),
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


def _lengths(answers: torch.Tensor, eos: int) -> list[int]:
    """Tokens of each answer, its end-of-sequence token included."""
    ends = (answers == eos).int()
    first = torch.where(ends.any(1), ends.argmax(1) + 1, torch.full((len(answers),), answers.shape[1]))
    return [int(length) for length in first]


def _kl(model: Any, sft: Any, prompt_mask: torch.Tensor, output: torch.Tensor, lengths: list[int]) -> list[float]:
    """For each answer, the sum over its tokens of KL(model || sft) between next-token distributions, in nats."""
    width = prompt_mask.shape[1]
    mask = torch.cat([prompt_mask, torch.ones_like(output[:, width:])], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    results = []
    for row, length in enumerate(lengths):  # row by row: two whole vocabularies a token are large
        one = {"input_ids": output[row : row + 1], "attention_mask": mask[row : row + 1]}
        one["position_ids"] = positions[row : row + 1]
        window = slice(width - 1, width - 1 + length)
        p, q = (m(**one).logits[0, window].float().log_softmax(-1) for m in (model, sft))
        results.append(float((p.exp() * (p - q)).sum()))
    return results
