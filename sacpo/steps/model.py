"""The `model` step: the policy that training starts from, as a plain Hugging Face folder with its tokenizer."""

from __future__ import annotations

import logging
from datetime import date
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from sacpo.data.batching import with_pad_token
from sacpo.data.pretrained import check_weights
from sacpo.errors import StepError, first_line
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.planning.metrics import ModelMetrics
from sacpo.planning.payloads import ModelPayload
from sacpo.spaces.space import PretrainedModel, SyntheticModel
from sacpo.steps.chat_template import fix_chat_template
from sacpo.steps.model_checks import check_prompt_format, check_vocabulary, end_token_ids
from sacpo.synthetic.world import SENTENCES, SLOTS

_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def run(job: Job[ModelPayload]) -> StepReport:
    """Write the model and its tokenizer to the job's folder.

    Raises:
        StepError: no model or tokenizer can be loaded, or one of `sacpo.steps.model_checks` fails.
    """
    settings = job.payload.model
    tokenizer: PreTrainedTokenizerBase
    model: Any
    if isinstance(settings, SyntheticModel):
        tokenizer = world_tokenizer()
        model = small_llama(settings, tokenizer)
        ends = [tokenizer.eos_token_id]
    else:
        model, tokenizer = _pretrained(settings)
        ends = end_token_ids(model, tokenizer, settings.prompt_template, settings.path)
    # The tokens that end an answer are kept. Sampling settings that a vendor ships are not: they would silently join
    # the sweep's own generation settings.
    model.generation_config = type(model.generation_config)(
        bos_token_id=model.generation_config.bos_token_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(job.folder)
    tokenizer.save_pretrained(job.folder)
    parameters = sum(p.numel() for p in model.parameters())
    card = {} if isinstance(settings, SyntheticModel) else card_of(settings)
    return StepReport(metrics=ModelMetrics(parameters=parameters, vocabulary=len(tokenizer), **card))


def card_of(settings: PretrainedModel) -> dict[str, str]:
    """`license` and `base_model` of a model, from the card (README.md) in its folder or on the hub, where it says them.

    The base model is the hub id itself; of a folder it is the model that its card names, if it names one.
    """
    names = {} if Path(settings.path).is_dir() else {"base_model": settings.path}
    try:
        path = cached_file(
            settings.path, "README.md", revision=settings.revision, _raise_exceptions_for_missing_entries=False
        )
        data = {} if path is None else ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).warning("the model card of %s is not read: %s", settings.path, first_line(error))
        data = {}
    return {key: value for key in ("license", "base_model") if isinstance(value := data.get(key), str)} | names


def world_tokenizer() -> PreTrainedTokenizerFast:
    """The synthetic world's tokenizer: one token per sentence."""
    words = [*_SPECIAL.values(), *SENTENCES]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?<=[.?!])\s+"), behavior="removed")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=len(SLOTS) + 8, **_SPECIAL)


def small_llama(settings: SyntheticModel, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """The synthetic world's model with its initial weights."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).to(getattr(torch, settings.dtype))


def _pretrained(settings: PretrainedModel) -> tuple[Any, PreTrainedTokenizerBase]:
    path, revision = settings.path, settings.revision or "main"
    extra = {"gguf_file": settings.gguf_file} if settings.gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, **extra)
    except Exception as error:
        raise StepError(
            f"model.path {path}: no tokenizer can be loaded from it ({type(error).__name__}: {first_line(error)}); "
            "put the tokenizer's files beside the weights"
        ) from error
    try:
        dtype = getattr(torch, settings.dtype)
        model, info = AutoModelForCausalLM.from_pretrained(
            path, revision=revision, dtype=dtype, output_loading_info=True, **extra
        )
        if extra:
            model = _without_quantization_config(model)
    except Exception as error:
        raise StepError(
            f"model.path {path}: no causal language model can be loaded from it "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
    check_weights(info, f"model.path {path}")
    if tokenizer.pad_token_id is None:
        logging.getLogger(__name__).warning("no padding token: the end-of-sequence token is used for padding")
    tokenizer = with_pad_token(tokenizer)
    check_vocabulary(model, tokenizer, path)
    fix_chat_template(tokenizer, settings.chat_template_kwargs, date.fromisoformat(settings.chat_date))
    check_prompt_format(tokenizer, settings.prompt_template, path)
    return model, tokenizer


def _without_quantization_config(quantised: Any) -> Any:
    """A model that was dequantised from a GGUF file, without the marks that keep it from being saved as a plain one."""
    config = quantised.config
    del config.quantization_config
    return type(quantised).from_pretrained(
        None, config=config, state_dict=quantised.state_dict(), dtype=quantised.dtype
    )
