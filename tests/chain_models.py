"""Tiny models whose weights are a Markov chain: every token is followed by one other, so greedy answers are known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<turn>", "<end_of_turn>", "<think>", "</think>"]
WORDS = [*SPECIAL, "user", "assistant", "system", "hello", "why", "one", "two", "three", "four", "five", "six", "seven"]
TURNS = "{% for m in messages %}<turn> {{ m['role'] }} {{ m['content'] }} END {% endfor %}"
ASK = "{% if add_generation_prompt %}<turn> assistant {% endif %}"


def template(end: str = "</s>") -> str:
    """A chat template whose turns end with this token; empty for none."""
    return TURNS.replace("END", end) + ASK


def chain_tokenizer(chat_template: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    """One token per word of `WORDS`."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"} | special
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.chat_template = chat_template
    return tokenizer


def chain_model(follows: Mapping[str, str], **config: Any) -> LlamaForCausalLM:
    """A Llama in which each word is followed by `follows[word]`, or by `hello`."""
    size = len(WORDS)
    sizes = {"vocab_size": size, "hidden_size": size, "intermediate_size": 8, "num_hidden_layers": 1}
    defaults = {
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes | defaults | config))
    with torch.no_grad():
        block = model.model.layers[0]
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for i, word in enumerate(WORDS):
            model.lm_head.weight[WORDS.index(follows.get(word, "hello")), i] = 4.0
    return model


def save(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Write a model folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
