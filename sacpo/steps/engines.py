"""Generation engines: each takes prompts as token ids and returns each answer's ids, perhaps with tokens after its end.

An engine also returns the generation configuration that it used, so that it can be compared with the settings.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from sacpo.data.batching import batches_by_length
from sacpo.errors import StepError
from sacpo.spaces.evaluation import Generation
from sacpo.steps.policies import stop_ids

CPU_CACHE_FRACTION = 0.05
"""Share of the free memory for the cache of continuous batching on a CPU; transformers would take nine tenths."""


class Engine(Protocol):
    """Answers in the order of the prompts, and the configuration with which they were generated."""

    def __call__(
        self, model: Any, tokenizer: Any, prompts: list[list[int]], settings: Generation
    ) -> tuple[list[list[int]], GenerationConfig]: ...


def batched(
    model: Any, tokenizer: Any, prompts: list[list[int]], settings: Generation
) -> tuple[list[list[int]], GenerationConfig]:
    """Transformers' `generate` on batches of prompts of similar length; a batch runs until its longest answer ends."""
    torch.manual_seed(settings.seed)
    answers: dict[int, list[int]] = {}
    config = generation_config(tokenizer, settings, stop_ids(model))
    for batch in batches_by_length([len(prompt) for prompt in prompts], settings.batch_size):
        inputs = tokenizer.pad({"input_ids": [prompts[i] for i in batch]}, return_tensors="pt").to(model.device)
        output = model.generate(**inputs, generation_config=config)
        answers |= zip(batch, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True)
    return [answers[i] for i in range(len(prompts))], config


def continuous(
    model: Any, tokenizer: Any, prompts: list[list[int]], settings: Generation
) -> tuple[list[list[int]], GenerationConfig]:
    """Transformers' continuous batching: an answer that ends makes room for the next prompt at once.

    Raises:
        StepError: a prompt got no answer, or one that broke off; transformers only logs it.
    """
    config = generation_config(tokenizer, settings, stop_ids(model))
    on_cpu = model.device.type == "cpu"
    batching = ContinuousBatchingConfig(
        max_requests_per_batch=settings.batch_size,
        seed=settings.seed,
        drop_unsupported_processors=False,
        max_memory_percent=CPU_CACHE_FRACTION if on_cpu else None,
    )
    outputs = model.generate_batch(inputs=prompts, generation_config=config, continuous_batching_config=batching)
    errors = [output.error for output in outputs.values() if output.error is not None]
    if errors or len(outputs) < len(prompts):
        raise StepError(
            f"continuous batching left {len(errors) + len(prompts) - len(outputs)} of {len(prompts)} prompts without "
            f"an answer ({errors[0] if errors else 'it ended early'}); try a smaller evaluation.generation.batch_size, "
            "or engine: batched"
        )
    return [list(output.generated_tokens) for output in outputs.values()], config


ENGINES: dict[str, Engine] = {"batched": batched, "continuous": continuous}


def generation_config(tokenizer: Any, settings: Generation, ends: list[int]) -> GenerationConfig:
    """The settings as transformers takes them. Greedy decoding at temperature 0; `top_k` is off otherwise.

    Args:
        tokenizer: The policy's tokenizer.
        settings: The settings.
        ends: Ids of the tokens that end an answer.
    """
    sampling: dict[str, Any] = {"do_sample": settings.temperature > 0}
    if sampling["do_sample"]:
        sampling |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        **sampling,
    )
