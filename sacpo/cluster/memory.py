"""Memory and disk space that a plan needs at least, compared with what the cluster has.

A plan is refused if it can never fit: parameters, gradients and optimizer states of a training step, or the files of
the trained policies. Activations and logits depend on the lengths of the texts; they are estimated at full length and
only reported.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sacpo.errors import SacpoError, first_line
from sacpo.planning.payloads import AnyTrainPayload, lora_of
from sacpo.planning.plan import Plan, Step
from sacpo.spaces.methods import METHODS
from sacpo.spaces.model_loading import ALL_LINEAR, LoRA
from sacpo.spaces.space import PretrainedModel, SyntheticModel
from sacpo.steps.batch import Batch
from sacpo.synthetic.world import SENTENCES

_BYTES = {"float32": 4, "bfloat16": 2}
_SPECIAL_TOKENS = 4
_GB = 1e9


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a causal language model.

    Attributes:
        parameters: Number of parameters.
        layers: Number of transformer blocks.
        width: Width of the residual stream.
        vocabulary: Number of tokens that logits are computed for.
        linear: (module name, inputs, outputs) of every linear module that an adapter can have.
    """

    parameters: int
    layers: int
    width: int
    vocabulary: int
    linear: tuple[tuple[str, int, int], ...] = ()

    def adapter_parameters(self, settings: LoRA) -> int:
        """Parameters of the adapters that LoRA trains."""
        chosen = [
            (inputs, outputs)
            for name, inputs, outputs in self.linear
            if settings.targets == ALL_LINEAR or any(f".{name}".endswith(f".{target}") for target in settings.targets)
        ]
        return settings.rank * sum(inputs + outputs for inputs, outputs in chosen)


def model_size(model: SyntheticModel | PretrainedModel) -> ModelSize | None:
    """Sizes of a model, from its configuration alone.

    Returns:
        None for a hub id that cannot be read from this machine; the nodes may be able to read it.

    Raises:
        SacpoError: the folder has no configuration of a causal language model.
    """
    if isinstance(model, SyntheticModel):
        width, vocabulary = model.hidden_size, len(SENTENCES) + _SPECIAL_TOKENS
        block = 4 * width**2 + 3 * width * 2 * width + 2 * width  # attention, gated MLP of twice the width, norms
        parameters = 2 * vocabulary * width + model.layers * block + width
        shapes = dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"), (1, 1))
        shapes |= {"mlp.gate_proj": (1, 2), "mlp.up_proj": (1, 2), "mlp.down_proj": (2, 1)}
        linear = tuple(
            (f"model.layers.{i}.{name}", inputs * width, outputs * width)
            for i in range(model.layers)
            for name, (inputs, outputs) in shapes.items()
        )
        return ModelSize(parameters, model.layers, width, vocabulary, linear)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    extra = {"gguf_file": model.gguf_file} if model.gguf_file else {}
    try:
        config = AutoConfig.from_pretrained(model.path, revision=model.revision or "main", **extra)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config)
        parameters = sum(p.numel() for p in network.parameters())
        linear = tuple(
            (name, *reversed(module.weight.shape))
            for name, module in network.named_modules()
            if getattr(module, "weight", None) is not None
            and module.weight.ndim == 2
            and module not in (network.get_input_embeddings(), network.get_output_embeddings())
        )
        text = config.get_text_config()
        return ModelSize(parameters, text.num_hidden_layers, text.hidden_size, text.vocab_size, linear)
    except Exception as error:
        if not Path(model.path).exists():
            return None
        raise SacpoError(
            f"model.path {model.path}: no configuration of a causal language model can be read from it "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def remaining_trainings(plan: Plan, done: Collection[str]) -> dict[str, tuple[Step, AnyTrainPayload]]:
    """Training steps that are not done, with their payloads, by id."""
    return {
        step.id: (step, step.payload)
        for step in plan.steps.values()
        if step.id not in done and isinstance(step.payload, AnyTrainPayload)
    }


def state_bytes(step: Step, payload: AnyTrainPayload, size: ModelSize, plan: Plan) -> float:
    """Bytes of parameters, gradients and optimizer states that each worker of a training step holds on its device.

    ZeRO (Rajbhandari et al. 2020, section 3.1): 16 bytes per parameter for AdamW with float32 states, divided among all
    workers. Plain data parallelism keeps everything on every worker.
    LoRA has gradients and states of the adapters alone, and needs no second model for a live reference.
    Offloading leaves the weights that the GPU computes with (ZeRO-Offload, Ren et al. 2021, section 4.1).
    """
    resources, bytes_per_number = plan.space.resources, _BYTES[payload.dtype]
    zero3, adapters = resources.sharding == "zero3", lora_of(payload)
    total = _trained(payload, size) * (float(bytes_per_number) if _is_offloaded(plan) else 16.0)
    if adapters is not None:
        total += base_bytes(payload, size)
    elif resources.reference == "live" and "reference" in step.parents:
        total += size.parameters * (bytes_per_number if zero3 else 4)
    return total / (resources.workers if zero3 else 1)


def offloaded_bytes(payload: AnyTrainPayload, size: ModelSize, plan: Plan) -> float:
    """Bytes of gradients, float32 weights and AdamW's states that each worker holds in its node's memory, not its
    GPU's: 16 per trained parameter, divided among all workers; 0 unless they are offloaded."""
    return 16.0 * _trained(payload, size) / plan.space.resources.workers if _is_offloaded(plan) else 0.0


def _is_offloaded(plan: Plan) -> bool:
    """Whether optimizer states leave a GPU; without GPUs both memories are one."""
    return plan.space.resources.optimizer_offload and plan.space.resources.gpus_per_worker > 0


def _trained(payload: AnyTrainPayload, size: ModelSize) -> int:
    """Parameters that a step trains."""
    adapters = lora_of(payload)
    return size.parameters if adapters is None else size.adapter_parameters(adapters)


def base_bytes(payload: AnyTrainPayload, size: ModelSize) -> float:
    """Bytes of the frozen weights below adapters; linear modules may have 4-bit numbers and their scales (QLoRA: 4.127
    bits a number with double quantisation)."""
    bytes_per_number = _BYTES[payload.dtype]
    if payload.loading.quantization is None:
        return size.parameters * bytes_per_number
    linear = sum(inputs * outputs for _, inputs, outputs in size.linear)
    return linear * 4.127 / 8 + (size.parameters - linear) * bytes_per_number


def stored_bytes(payload: AnyTrainPayload, size: ModelSize) -> float:
    """Bytes of the weights that a training step stores: all of them, or adapters in float32."""
    adapters = lora_of(payload)
    return size.parameters * _BYTES[payload.dtype] if adapters is None else size.adapter_parameters(adapters) * 4


def activation_bytes(payload: AnyTrainPayload, size: ModelSize, plan: Plan) -> float:
    """Bytes that one forward pass keeps for the backward pass if every text has `data.max_length` tokens.

    Korthikanti et al. 2022, equation 2 without the attention matrix, which fused attention does not keep; plus the
    logits and their float32 copy.
    """
    bytes_per_number, resources = _BYTES[payload.dtype], plan.space.resources
    texts = METHODS[payload.method].texts_per_example
    rows = texts * Batch.of(payload, resources, resources.workers).per_device
    block = 2 if payload.settings.gradient_checkpointing else 34
    per_token = size.layers * size.width * block * bytes_per_number / 2 + size.vocabulary * (bytes_per_number + 4)
    return rows * plan.space.data.max_length * per_token


def check_fits(
    plan: Plan, size: ModelSize, done: Collection[str], memory: float | None, device: str, folder: Path | None
) -> list[str]:
    """Refuse a plan whose training steps or files can never fit.

    Args:
        plan: The plan.
        size: Sizes of the model.
        done: Steps that are done already.
        memory: Bytes that one worker can have at most, on the largest node; None if unknown.
        device: The device that has this memory, for messages.
        folder: Folder of the store or of its cache; None if it is not on this machine.

    Returns:
        Notes about training steps that may run out of memory.

    Raises:
        SacpoError: names the step that cannot fit and the settings that help.
    """
    remaining = remaining_trainings(plan, done)
    if not remaining:
        return []
    states = {step_id: state_bytes(step, payload, size, plan) for step_id, (step, payload) in remaining.items()}
    peaks = {
        step_id: states[step_id] + activation_bytes(payload, size, plan) for step_id, (_, payload) in remaining.items()
    }
    if memory is not None and max(states.values()) > memory:
        largest = max(states, key=states.__getitem__)
        raise SacpoError(
            f"{plan.steps[largest].label} can never fit: parameters, gradients and optimizer states of "
            f"{size.parameters / _GB:.2g} billion parameters take {states[largest] / _GB:.1f} GB on each of "
            f"{plan.space.resources.workers} workers, and {device} has {memory / _GB:.1f} GB for one; {_way_out(plan)}"
        )
    notes = []
    if memory is not None and max(peaks.values()) > memory:
        largest = max(peaks, key=peaks.__getitem__)
        notes.append(
            f"{plan.steps[largest].label} may run out of memory: if every text has data.max_length tokens, it takes "
            f"about {peaks[largest] / _GB:.1f} GB per worker, and {device} has {memory / _GB:.1f} GB for one; "
            "resources.per_device_batch, data.max_length and gradient_checkpointing reduce it"
        )
    if folder is not None:
        needed = sum(stored_bytes(payload, size) for _, payload in remaining.values())
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
        if needed > free:
            raise SacpoError(
                f"{len(remaining)} trained models of {needed / len(remaining) / _GB:.2g} GB do not fit into the "
                f"{free / _GB:.1f} GB that are free below {folder}; give another location with --store"
            )
    return notes


def check_offload_fits(plan: Plan, size: ModelSize, done: Collection[str], memory: float | None) -> None:
    """Refuse a plan whose offloaded optimizer states can never fit.

    Args:
        plan: The plan.
        size: Sizes of the model.
        done: Steps that are done already.
        memory: Bytes of a node's memory that one worker can have at most; None if unknown.

    Raises:
        SacpoError: names the step that cannot fit and the settings that help.
    """
    steps = remaining_trainings(plan, done).values()
    needed, label = max((offloaded_bytes(payload, size, plan), step.label) for step, payload in steps)
    if memory is not None and needed > memory:
        raise SacpoError(
            f"{label} can never fit: resources.optimizer_offload keeps {needed / _GB:.1f} GB of each worker in its "
            f"node's memory, and the largest node has {memory / _GB:.1f} GB for one; set resources.workers higher, "
            "use nodes with more memory, or resources.optimizer_offload: false"
        )


def _way_out(plan: Plan) -> str:
    resources = plan.space.resources
    if resources.sharding == "ddp":
        return "resources.sharding: zero3 divides them among the workers"
    if resources.gpus_per_worker and not resources.optimizer_offload:
        return (
            "set resources.workers higher, so that each holds a smaller part, resources.optimizer_offload: true, so "
            "that the node's memory holds the most of it, or use larger machines or a smaller model"
        )
    return "set resources.workers higher, so that each holds a smaller part, or use larger machines or a smaller model"
