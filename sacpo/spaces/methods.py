"""The table of training methods: the only place that lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sacpo.spaces.training import DPOTraining, KTOTraining, RewardTraining, SFTTraining, Training

ExampleShape = Literal["pairs", "labelled", "demonstrations"]
"""Columns of an example: prompt, chosen and rejected; prompt, completion and label; or prompt and completion."""


@dataclass(frozen=True)
class Method:
    """Facts about a training method.

    Attributes:
        name: Its name in chains (`dpo:helpfulness`) and in `training`.
        settings: Model of its settings.
        example_shape: Shape of the examples that it is trained on.
        uses_reference: The loss has a KL parameter and a reference policy.
        in_chains: Stages of a chain may use it.
        texts_per_example: Sequences that one example puts into a forward pass.
        keeps_order: Examples must not be sorted by length, because the loss depends on which examples share a batch.
    """

    name: str
    settings: type[Training]
    example_shape: ExampleShape
    uses_reference: bool
    in_chains: bool
    texts_per_example: int
    keeps_order: bool = False


_TABLE = (
    Method("sft", SFTTraining, "demonstrations", uses_reference=False, in_chains=False, texts_per_example=1),
    Method("dpo", DPOTraining, "pairs", uses_reference=True, in_chains=True, texts_per_example=2),
    # KTO's KL term is a mean over the forward batch, and needs the completion of another example beside the own one.
    Method("kto", KTOTraining, "labelled", uses_reference=True, in_chains=True, texts_per_example=2, keeps_order=True),
    Method("reward", RewardTraining, "pairs", uses_reference=False, in_chains=False, texts_per_example=2),
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}
"""All training methods by name. `reward` trains judges; the others train policies."""

CHAIN_METHODS: tuple[str, ...] = tuple(method.name for method in _TABLE if method.in_chains)
"""Names of the methods that stages of a chain may use."""
