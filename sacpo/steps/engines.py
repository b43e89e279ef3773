"""How answers are generated: an engine takes prompts as token ids and gives each answer's, with what may follow it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from sacpo.errors import StepError


class Engine(Protocol):
    """Answers in the order of the prompts; `settings` are the space's `evaluation.generation`."""

    def __call__(
        self, model: Any, tokenizer: Any, prompts: list[list[int]], settings: dict[str, Any]
    ) -> list[list[int]]: ...


def batched(model: Any, tokenizer: Any, prompts: list[list[int]], settings: dict[str, Any]) -> list[list[int]]:
    """Transformers' `generate` on batches of prompts of like length; each takes its longest answer."""
    torch.manual_seed(settings["seed"])
    queue = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    answers: dict[int, list[int]] = {}
    for start in range(0, len(queue), settings["batch_size"]):
        batch = queue[start : start + settings["batch_size"]]
        ids = [prompts[i] for i in batch]
        inputs = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
        output = model.generate(**inputs, generation_config=_config(tokenizer, settings))
        answers |= zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True)
    return [answers[i] for i in range(len(prompts))]


def continuous(model: Any, tokenizer: Any, prompts: list[list[int]], settings: dict[str, Any]) -> list[list[int]]:
    """Transformers' continuous batching: an answer that ends makes room for the next prompt at once.

    Raises:
        StepError: a prompt got no answer, or one that broke off; transformers only logs it.
    """
    config = ContinuousBatchingConfig(
        max_requests_per_batch=settings["batch_size"], seed=settings["seed"], drop_unsupported_processors=False
    )
    found = model.generate_batch(
        inputs=prompts, generation_config=_config(tokenizer, settings), continuous_batching_config=config
    )
    failed = [output.error for output in found.values() if output.error is not None]
    if failed or len(found) < len(prompts):
        raise StepError(
            f"continuous batching left {len(failed) + len(prompts) - len(found)} of {len(prompts)} prompts without an "
            f"answer ({failed[0] if failed else 'it ended early'}); try a smaller evaluation.generation.batch_size, or "
            "engine: batched"
        )
    return [list(output.generated_tokens) for output in found.values()]


ENGINES: dict[str, Engine] = {"batched": batched, "continuous": continuous}


def _config(tokenizer: Any, settings: dict[str, Any]) -> GenerationConfig:
    sampling: dict[str, Any] = {"do_sample": settings["temperature"] > 0}
    if sampling["do_sample"]:
        sampling |= {"temperature": settings["temperature"], "top_p": settings["top_p"], "top_k": 0}
    return GenerationConfig(
        max_new_tokens=settings["max_new_tokens"],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
