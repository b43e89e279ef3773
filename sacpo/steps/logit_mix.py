"""Answers of two policies whose next-token distributions are mixed: p is proportional to p1^(1-q) p2^q.

Exact for each token; for a whole answer it approximates the mixture of the two distributions of answers (DeRa, Liu et
al. 2024; MOD, Shi et al. 2024). At q = 0 and q = 1 it is the first and the second policy.

An export has a copy of this file beside the folders `first` and `second` and `logit_mix.json`: `python generate.py
"PROMPT"` prints an answer. It needs torch and transformers alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList


class SecondPolicy(LogitsProcessor):  # type: ignore[misc]
    """Mixes the second policy's logits into those of the model that generates; for one call of `generate`.

    Args:
        model: The second policy.
        q: Its weight.
        attention_mask: Mask of the prompts, which are padded on the left; shape (prompts, tokens).
    """

    def __init__(self, model: Any, q: float, attention_mask: torch.Tensor) -> None:
        self.model, self.q, self.mask = model, q, attention_mask
        self.cache: Any = None
        self.seen = 0  # tokens in the cache

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The mixed logits of the next token; shape (prompts, vocabulary)."""
        added = self.mask.new_ones(len(input_ids), input_ids.shape[1] - self.mask.shape[1])
        self.mask = torch.cat([self.mask, added], dim=1)
        output = self.model(
            input_ids=input_ids[:, self.seen :],
            attention_mask=self.mask,
            position_ids=(self.mask.cumsum(1) - 1).clamp(min=0)[:, self.seen :],
            past_key_values=self.cache,
            use_cache=True,
        )
        self.cache, self.seen = output.past_key_values, input_ids.shape[1]
        return mixed(scores, output.logits[:, -1], self.q)


class LogitMix:
    """Two policies as one model: what steps need of a model to generate, and to score answers.

    Args:
        first: Policy with weight 1 - q.
        second: Policy with weight q.
        q: The weight.
    """

    def __init__(self, first: Any, second: Any, q: float) -> None:
        self.first, self.second, self.q = first, second, q
        self.generation_config, self.config = first.generation_config, first.config
        self.device, self.dtype = first.device, first.dtype

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        """The mixed logits of all positions, as `logits`."""
        first, second = (model(**inputs).logits for model in (self.first, self.second))
        return SimpleNamespace(logits=mixed(first, second, self.q))

    def generate(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        """As transformers' `generate`; each policy keeps a cache of its own."""
        mix = LogitsProcessorList([SecondPolicy(self.second, self.q, attention_mask)])
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.first.generate(**inputs, logits_processor=mix, **options)


def mixed(first: torch.Tensor, second: torch.Tensor, q: float) -> torch.Tensor:
    """(1-q) first + q second in float32: the logits of p1^(1-q) p2^q before it is normalised."""
    return (1 - q) * first.float() + q * second.float()


def main(prompt: str) -> None:
    """Print the answer that the policy of this script's folder gives to a prompt."""
    folder = Path(__file__).parent
    recipe = json.loads((folder / "logit_mix.json").read_text())
    first, second = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("first", "second"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "first")
    template: str = recipe["prompt_template"]
    if template == "chat":
        messages = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
    else:
        inputs = tokenizer(template.replace("{prompt}", prompt), return_tensors="pt")
    answer = LogitMix(first, second, recipe["q"]).generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=recipe["max_new_tokens"],
        do_sample=False,
    )
    print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())


if __name__ == "__main__":
    main(sys.argv[1])
