"""The `model` step: what training starts from, as a plain Hugging Face folder with its tokenizer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from sacpo.errors import StepError, first_line
from sacpo.execution.job import Facts, Job
from sacpo.steps.merge import merged
from sacpo.synthetic.world import SENTENCES, SLOTS

_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def run(job: Job) -> Facts:
    """Write the model and its tokenizer to the job's folder."""
    if job.payload["kind"] == "synthetic":
        tokenizer: PreTrainedTokenizerBase = world_tokenizer()
        model: Any = _small_llama(job.payload, tokenizer)
    else:
        model, tokenizer = _pretrained(job.payload, job.local["path"], job.local["revision"])
    # Sampling settings that a vendor ships would otherwise quietly join the sweep's own generation settings.
    model.generation_config = type(model.generation_config)(
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(job.folder)
    tokenizer.save_pretrained(job.folder)
    return Facts(metrics={"parameters": sum(p.numel() for p in model.parameters()), "vocabulary": len(tokenizer)})


def world_tokenizer() -> PreTrainedTokenizerFast:
    """The synthetic world's tokenizer: one token a sentence."""
    words = [*_SPECIAL.values(), *SENTENCES]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?<=[.?!])\s+"), behavior="removed")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=len(SLOTS) + 8, **_SPECIAL)


def _small_llama(payload: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    torch.manual_seed(payload["seed"])
    width = payload["hidden_size"]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=payload["layers"],
        num_attention_heads=payload["heads"],
        num_key_value_heads=payload["heads"],
        max_position_embeddings=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).to(getattr(torch, payload["dtype"]))


def _pretrained(payload: dict[str, Any], path: str, revision: str | None) -> tuple[Any, PreTrainedTokenizerBase]:
    extra = {"gguf_file": payload["gguf_file"]} if payload["gguf_file"] else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision or "main", **extra)
    except Exception as error:
        raise StepError(
            f"model.path {path}: no tokenizer can be loaded from it ({type(error).__name__}: {first_line(error)}); "
            "put the tokenizer's files beside the weights"
        ) from error
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, revision=revision or "main", dtype=getattr(torch, payload["dtype"]), **extra
        )
        if extra:
            model = _plain(model)
    except Exception as error:
        raise StepError(
            f"model.path {path}: no causal language model can be loaded from it "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    if payload["prompt_template"] == "chat" and not tokenizer.chat_template:
        raise StepError(
            f"model.prompt_template is `chat`, but the tokenizer of {path} has no chat template; "
            "give a text with {prompt} in it, for example 'USER: {prompt} ASSISTANT:'"
        )
    if tokenizer.eos_token_id is None:
        raise StepError(f"model.path {path}: the tokenizer has no end-of-sequence token, so no answer could end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        logging.getLogger(__name__).warning("no padding token: the end-of-sequence token pads")
    return model, tokenizer


def _plain(quantised: Any) -> Any:
    """A model read from a GGUF file, dequantised, without the marks that keep it from being written as a plain one."""
    config = quantised.config
    del config.quantization_config
    model = type(quantised)(config).to(quantised.dtype)
    model.load_state_dict(quantised.state_dict())
    return model


def load_policy(parents: dict[str, Path], q: float | None = None) -> tuple[Any, PreTrainedTokenizerBase]:
    """A policy and its tokenizer from the store, for answering: left padding, evaluation mode, on the device.

    Args:
        parents: The folder of `policy`, or those of `first` and `second`, which are averaged.
        q: The second's weight in the average.
    """
    tokenizer = AutoTokenizer.from_pretrained(parents["policy" if q is None else "first"], padding_side="left")
    model: Any
    if q is None:
        model = AutoModelForCausalLM.from_pretrained(parents["policy"], dtype="auto")
    else:
        model = merged(parents["first"], parents["second"], q)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
