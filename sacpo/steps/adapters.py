"""LoRA adapters: what a stage with `lora` trains and stores, and how adapters join the weights that they belong to.

A policy that was trained with LoRA is stored as one adapter on the last policy with all weights (its base). A later
stage is trained on top of the frozen adapter of the policy before it, and stores both stacked as one adapter: the
low-rank factors stand beside each other, so their products add up. The policy before is thus both where the stage
starts and its reference policy, as in SACPO (paper, Theorem 1). Nothing is rounded to the number format of the base's
weights, as merging would do, and a 4-bit base stays as it is.

`attach` is the one function that adds a frozen adapter to a model. Training, reference log-probabilities and answers
therefore compute the same policy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import linear, pad
from torch.utils.hooks import RemovableHandle

from sacpo.errors import StepError
from sacpo.execution.job import Job
from sacpo.planning.payloads import AnyTrainPayload, lora_of
from sacpo.spaces.model_loading import ALL_LINEAR, LoRA

if TYPE_CHECKING:
    from peft import LoraConfig

# peft is imported where it is needed: it takes seconds, and processes that answer or score do without.

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of an adapter, as peft names them."""
_TRAINED = "default"  # peft's name of the adapter that a trainer makes


@dataclass(frozen=True)
class Adapter:
    """Low-rank additions to the weights of linear modules.

    Attributes:
        factors: Module name to (A, B) in float32, of shapes (rank, inputs) and (outputs, rank). The module's output for
            x is W x + B A x. Without any factor the adapter changes nothing.
    """

    factors: dict[str, tuple[Tensor, Tensor]]

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max((a.shape[0] for a, _ in self.factors.values()), default=1)

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """The adapter of a folder that `write` or peft wrote, or one without factors for a folder with all weights."""
        if not (folder / CONFIG).exists():
            return cls({})
        config = json.loads((folder / CONFIG).read_text())
        scale, tensors = config["lora_alpha"] / config["r"], load_file(folder / WEIGHTS)
        names = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
        factors = {
            name.removeprefix("base_model.model."): (
                tensors[f"{name}.lora_A.weight"].float(),
                tensors[f"{name}.lora_B.weight"].float() * scale,
            )
            for name in names
        }
        return cls(factors)

    def write(self, folder: Path, base: str | None = None) -> None:
        """Write the adapter as peft does; `base` is the name of the base model for the configuration."""
        self._config(base).save_pretrained(str(folder))
        config = json.loads((folder / CONFIG).read_text())
        config["target_modules"] = sorted(self.factors)  # peft keeps a set, whose order differs from run to run
        (folder / CONFIG).write_text(json.dumps(config, indent=1))
        save_file(self.state(), folder / WEIGHTS, metadata={"format": "pt"})

    def state(self) -> dict[str, Tensor]:
        """The factors by peft's names, all of one rank: smaller ones are filled up with zeros."""
        tensors = {}
        for name, (a, b) in self.factors.items():
            missing = self.rank - a.shape[0]
            tensors[f"base_model.model.{name}.lora_A.weight"] = pad(a, (0, 0, 0, missing)).contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = pad(b, (0, missing)).contiguous()
        return tensors

    def merged_into(self, model: Any) -> Any:
        """The model with B A added to its weights, in the model's own number format."""
        if not self.factors:
            return model
        from peft import get_peft_model, set_peft_model_state_dict

        with_adapter = get_peft_model(model, self._config(None))
        set_peft_model_state_dict(with_adapter, self.state())
        return with_adapter.merge_and_unload()

    def _config(self, base: str | None) -> LoraConfig:
        from peft import LoraConfig

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.rank,  # B holds the scale
            target_modules=sorted(self.factors),
            base_model_name_or_path=base,
            inference_mode=True,
            task_type="CAUSAL_LM",
        )


def stacked(*parts: tuple[Adapter, float]) -> Adapter:
    """The adapter whose additions are the weighted sum of those of adapters on the same base.

    Exact, unlike an average of the factors: `w1 B1 A1 + w2 B2 A2 = [w1 B1, w2 B2] [A1; A2]`. An average of the weights
    of two policies, base + B1 A1 and base + B2 A2, is therefore their adapters stacked with the average's weights.
    """
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for adapter, weight in parts:
        for name, (a, b) in adapter.factors.items() if weight else ():
            earlier = factors.get(name, (a[:0], b[:, :0]))
            factors[name] = torch.cat([earlier[0], a]), torch.cat([earlier[1], b * weight], dim=1)
    return Adapter(factors)


def attach(model: Any, adapter: Adapter) -> list[RemovableHandle]:
    """Add a frozen adapter to a model, which may itself carry an adapter of peft; returns handles that remove it.

    Raises:
        StepError: the model lacks a module of the adapter.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    modules: dict[str, Any] = dict(model.named_modules())
    if missing := adapter.factors.keys() - modules.keys():
        raise StepError(f"the adapter belongs to another architecture: the base has no module {min(missing)}")
    return [
        getattr(modules[name], "base_layer", modules[name]).register_forward_hook(_Addition(*factors))
        for name, factors in adapter.factors.items()
    ]


class _Addition:
    """A forward hook that adds B A x to a module's output. The factors follow the inputs' device and number format."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        self.a, self.b = self.a.to(x), self.b.to(x)
        return output + linear(linear(x, self.a), self.b).to(output.dtype)


def stage_model(job: Job[AnyTrainPayload]) -> dict[str, Any]:
    """The trainer's arguments for the policy that a stage starts from: the base's folder, and the adapters to train."""
    settings = lora_of(job.payload)
    if settings is None:
        return {"model": str(job.parents["policy"])}
    from peft import LoraConfig

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
    )
    return {"model": str(job.parents.get("policy_base", job.parents["policy"])), "peft_config": config}


def prepare_stage(trainer: Any, job: Job[AnyTrainPayload]) -> None:
    """Add the frozen adapter of the policy that the stage starts from, and restore the dropout of the trained one.

    DPO and KTO set every dropout of a model to 0, since the policy must equal its reference before the first update.
    That of an adapter changes nothing then, because B is still 0.
    """
    settings = lora_of(job.payload)
    if settings is None:
        return
    attach(trainer.model, Adapter.read(job.parents["policy"]))
    for dropout in _dropouts(trainer.model):
        dropout.p = settings.dropout


def finish_stage(job: Job[AnyTrainPayload]) -> None:
    """Store the trained adapter stacked on that of the policy that the stage started from."""
    if lora_of(job.payload) is not None:
        trained, before = Adapter.read(job.folder), Adapter.read(job.parents["policy"])
        stacked((before, 1.0), (trained, 1.0)).write(job.folder)
        (job.folder / "README.md").unlink(missing_ok=True)  # peft's model card, with a path of this machine


def effective_lora(model: Any, requested: LoRA | None) -> LoRA | None:
    """The settings that the trained adapter of a trainer's model has; None if it trains all weights.

    Targets that are names count if each of them names a module with an adapter.
    """
    if not hasattr(model, "peft_config"):
        return None
    config = model.peft_config[_TRAINED]
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    names = ALL_LINEAR if requested is None else requested.targets
    if isinstance(names, list):
        names = [target for target in names if any(f".{name}".endswith(f".{target}") for name in adapted)]
    dropouts = {dropout.p for dropout in _dropouts(model)} or {0.0}
    dropout = dropouts.pop() if len(dropouts) == 1 else -1.0
    values = {"rank": config.r, "alpha": config.lora_alpha, "dropout": dropout, "targets": names}
    return LoRA.model_construct(**values)


def _dropouts(model: Any) -> list[torch.nn.Dropout]:
    return [
        module.lora_dropout[_TRAINED]
        for module in model.modules()
        if hasattr(module, "lora_dropout") and isinstance(module.lora_dropout[_TRAINED], torch.nn.Dropout)
    ]
