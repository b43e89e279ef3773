"""Memory and disk that a plan cannot do without, and what there is.

What is refused is what can never fit: a training's parameters, gradients and optimizer states, and the files of the
trained policies. Activations and logits depend on how long the texts really are; they are estimated at full length and
only told.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sacpo.errors import SacpoError, first_line
from sacpo.planning.plan import Plan, Step
from sacpo.spaces.space import PretrainedModel, SyntheticModel
from sacpo.steps.batch import Batch
from sacpo.synthetic.world import SENTENCES

_BYTES = {"float32": 4, "bfloat16": 2}
_SPECIAL_TOKENS = 4
_GB = 1e9


@dataclass(frozen=True)
class Shape:
    """A causal language model's sizes.

    Attributes:
        parameters: How many.
        layers: Transformer blocks.
        width: Of the residual stream.
        vocabulary: Tokens that logits are over.
    """

    parameters: int
    layers: int
    width: int
    vocabulary: int


def shape(model: SyntheticModel | PretrainedModel) -> Shape | None:
    """A model's sizes, from its configuration alone; none where that cannot be had from here.

    Raises:
        SacpoError: the folder's configuration is none of a causal language model.
    """
    if isinstance(model, SyntheticModel):
        width, vocabulary = model.hidden_size, len(SENTENCES) + _SPECIAL_TOKENS
        block = 4 * width**2 + 3 * width * 2 * width + 2 * width  # attention, gated MLP of twice the width, norms
        return Shape(2 * vocabulary * width + model.layers * block + width, model.layers, width, vocabulary)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    extra = {"gguf_file": model.gguf_file} if model.gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(model.path, revision=model.revision or "main", **extra)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        text = config.get_text_config()
        return Shape(parameters, text.num_hidden_layers, text.hidden_size, text.vocab_size)
    except Exception as error:
        if not Path(model.path).exists():  # a hub id: a node may reach what we do not
            return None
        raise SacpoError(
            f"model.path {model.path}: no causal language model's configuration can be read from it "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def trainings(plan: Plan, done: Collection[str]) -> list[Step]:
    """Those that are still to be carried out."""
    return [step for step in plan.steps.values() if step.kind == "train" and step.id not in done]


def states(step: Step, sizes: Shape, plan: Plan) -> float:
    """Bytes of parameters, gradients and optimizer states that each worker of a training holds.

    ZeRO (Rajbhandari et al. 2020, section 3.1): 16 bytes a parameter for AdamW with float32 states, over all workers;
    plain data parallelism keeps all on every worker, its states in the model's own type.
    """
    resources, size = plan.space.resources, _BYTES[step.payload["dtype"]]
    zero3 = resources.sharding == "zero3"
    total = sizes.parameters * (16 if zero3 else 4 * size)
    if resources.reference == "live" and "reference" in step.parents:
        total += sizes.parameters * size
    return total / (resources.workers if zero3 else 1)


def activations(step: Step, sizes: Shape, plan: Plan) -> float:
    """Bytes that one forward pass leaves for the backward one, where every text has `data.max_length` tokens.

    Korthikanti et al. 2022, equation 2 without the attention matrix, which fused attention does not keep; and logits
    with their float32 copy.
    """
    size = _BYTES[step.payload["dtype"]]
    resources = plan.space.resources
    texts = 1 if step.payload["method"] == "sft" else 2
    rows = texts * Batch.of(step.payload, resources.model_dump(), resources.workers).per_device
    block = 2 if step.payload["settings"]["gradient_checkpointing"] else 34
    a_token = sizes.layers * sizes.width * block * size / 2 + sizes.vocabulary * (size + 4)
    return rows * plan.space.data.max_length * a_token


def check(
    plan: Plan, sizes: Shape, done: Collection[str], memory: float | None, device: str, store: Path | None
) -> list[str]:
    """What may turn out too large.

    Args:
        plan: The plan.
        sizes: The model's.
        done: Steps that need not be carried out.
        memory: Bytes that one worker may have at most on the largest node; none where nobody knows.
        device: What has that memory, in words.
        store: The store's folder, or that of its cache; none if it is not on this machine.

    Raises:
        SacpoError: names what cannot fit and the settings that would make it.
    """
    left = trainings(plan, done)
    if not left:
        return []
    notes = []
    largest = max(left, key=lambda step: states(step, sizes, plan))
    least = states(largest, sizes, plan)
    if memory is not None and least > memory:
        raise SacpoError(
            f"{largest.label} can never fit: parameters, gradients and optimizer states of "
            f"{sizes.parameters / _GB:.2g} billion parameters take {least / _GB:.1f} GB on each of "
            f"{plan.space.resources.workers} workers, and {device} has {memory / _GB:.1f} GB for one; {_ways_out(plan)}"
        )
    widest = max(left, key=lambda step: activations(step, sizes, plan))
    full = states(widest, sizes, plan) + activations(widest, sizes, plan)
    if memory is not None and full > memory:
        notes.append(
            f"{widest.label} may run out of memory: with every text data.max_length tokens long it takes about "
            f"{full / _GB:.1f} GB a worker, and {device} has {memory / _GB:.1f} GB for one; "
            "resources.per_device_batch, data.max_length and gradient_checkpointing make it less"
        )
    if store is not None:
        written = len(left) * sizes.parameters * _BYTES[plan.space.model.dtype]
        free = shutil.disk_usage(next(p for p in (store, *store.parents) if p.exists())).free
        if written > free:
            raise SacpoError(
                f"{len(left)} trained models of {written / len(left) / _GB:.1f} GB do not fit the "
                f"{free / _GB:.1f} GB that are free below {store}; give another place with --store"
            )
    return notes


def _ways_out(plan: Plan) -> str:
    if plan.space.resources.sharding == "ddp":
        return "resources.sharding: zero3 spreads them over the workers"
    return "set resources.workers higher, so that each holds a smaller part, or take larger machines or another model"
