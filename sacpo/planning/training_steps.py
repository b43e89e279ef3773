"""Plans the steps that make policies and trained judges: base model, data, reference log-probabilities, training."""

from __future__ import annotations

from pathlib import Path

from sacpo.planning.graph import Graph
from sacpo.planning.payloads import (
    STAGE_PAYLOADS,
    DemonstrationsPayload,
    FilesPayload,
    InspectionPayload,
    ModelPayload,
    PreferencesPayload,
    ProbabilitiesPayload,
    ReferencePayload,
    RewardPayload,
    SampledPayload,
    SFTPayload,
)
from sacpo.spaces.evaluation import TrainedJudge
from sacpo.spaces.merging import LINEAR, Combination
from sacpo.spaces.methods import METHODS, ExampleShape
from sacpo.spaces.sources import SyntheticDemonstrations, SyntheticPreferences
from sacpo.spaces.space import Files, PretrainedModel, Space
from sacpo.spaces.training import KTOTraining
from sacpo.synthetic.world import WORLD_VERSION

Chain = list[tuple[str, str]]
"""Stages as (method, objective)."""


class TrainingSteps:
    """Adds training steps to a graph.

    Args:
        graph: Where the steps go.
        space: The space.
        excluded_prompts: Id of the prompts that no policy and no judge may be trained on.
    """

    def __init__(self, graph: Graph, space: Space, excluded_prompts: str) -> None:
        self.graph, self.space, self.excluded_prompts = graph, space, excluded_prompts
        self._batch_sizes: dict[str, dict[str, int]] = {}  # data step to the batch size of each setting that uses it
        self.model = self._model()
        self.sft = self._sft()

    def chain(self, chain: Chain, kl_parameters: tuple[float, ...], seed: int) -> str:
        """The policy at the end of a chain, each stage starting from the policy before; returns the step id."""
        policy = self.sft
        for i, ((method, objective), kl_parameter) in enumerate(zip(chain, kl_parameters, strict=True)):
            label = f"train {chain_label(chain[: i + 1], kl_parameters[: i + 1])}{seed_label(self.space, seed)}"
            policy = self._stage(method, objective, kl_parameter, seed, policy, label)
        return policy

    def judge(self, judge: TrainedJudge, criterion: str) -> str:
        """The reward model of a trained judge; returns the step id."""
        data = self._examples(judge.objective, METHODS["reward"].example_shape, judge)
        self._uses(data, f"evaluation.{criterion} judge.training.batch_size", judge.training.batch_size)
        payload = RewardPayload(
            method="reward",
            objective=judge.objective,
            settings=judge.training,
            seed=judge.seed,
            dtype=self.space.model.dtype,
            max_length=self.space.data.max_length,
        )
        return self.graph.add("train", f"judge {criterion}", payload, {"policy": self.model, "data": data})

    def probabilities(
        self, policy: dict[str, str], q: float | None, label: str, combination: Combination = LINEAR
    ) -> str:
        """Exact probabilities of a policy in the synthetic world; returns the step id."""
        loading = self.space.model.loading
        payload = ProbabilitiesPayload(world=WORLD_VERSION, q=q, combination=combination, loading=loading)
        return self.graph.add("probabilities", f"probabilities {label}", payload, policy)

    def inspection(self, prompts: str) -> str:
        """The inspection of everything that was planned so far; returns the step id.

        Args:
            prompts: Id of all prompts, with the criterion in place of the category.
        """
        roles = {data: f"data{i}" for i, data in enumerate(self._batch_sizes)}
        payload = InspectionPayload(
            prompts=prompts,
            prompt_template=self.space.prompt_template,
            max_length=self.space.data.max_length,
            max_new_tokens=self.space.evaluation.generation.max_new_tokens,
            batch_sizes={roles[data]: tuple(sizes.items()) for data, sizes in self._batch_sizes.items()},
            loading=self.space.model.loading,
        )
        parents = {"model": self.model} | {role: data for data, role in roles.items()}
        return self.graph.add("inspection", "inspection", payload, parents)

    def _uses(self, data: str, setting: str, batch_size: int) -> str:
        """Note that a stage is trained on a data step; returns the data step."""
        self._batch_sizes.setdefault(data, {})[setting] = batch_size
        return data

    def _model(self) -> str:
        model = self.space.model
        if isinstance(model, PretrainedModel):
            inside = Path(model.path) / (model.gguf_file or "")  # a GGUF file holds weights and tokenizer
            content = self.graph.content(str(inside) if inside.exists() else model.path, model.revision)
            return self.graph.add("model", "model", ModelPayload(model=model, content=content))
        return self.graph.add("model", "model", ModelPayload(model=model, world=WORLD_VERSION))

    def _sft(self) -> str:
        settings = self.space.training.sft
        if settings is None:
            return self.model
        payload = SFTPayload(
            method="sft",
            settings=settings,
            seed=settings.seed,
            dtype=self.space.model.dtype,
            max_length=self.space.data.max_length,
            loading=self.space.model.loading,
        )
        data = self._examples(None, METHODS["sft"].example_shape)
        self._uses(data, "training.sft.batch_size", settings.batch_size)
        return self.graph.add("train", "sft", payload, {"policy": self.model, "data": data})

    def _stage(self, method: str, objective: str, kl_parameter: float, seed: int, policy: str, label: str) -> str:
        settings = self.space.training.settings(method, objective)
        assert settings is not None, "validation refuses a stage without settings"
        if isinstance(settings, KTOTraining):
            settings = settings.resolved()
        shape, max_length = METHODS[method].example_shape, self.space.data.max_length
        data = self._uses(self._examples(objective, shape), f"training.{method}.batch_size", settings.batch_size)
        parents = {"policy": policy, "data": data}
        loading = self.space.model.loading
        reference = ReferencePayload(shape=shape, max_length=max_length, loading=loading)
        parents["reference"] = self.graph.add("reference", f"reference for {label}", reference, parents)
        payload = STAGE_PAYLOADS[method].model_validate(
            {
                "method": method,
                "objective": objective,
                "settings": settings,
                "kl_parameter": kl_parameter,
                "seed": seed,
                "dtype": self.space.model.dtype,
                "max_length": max_length,
                "loading": loading,
            }
        )
        return self.graph.add("train", label, payload, parents)

    def _examples(self, objective: str | None, shape: ExampleShape, judge: TrainedJudge | None = None) -> str:
        """The data step of an objective (None: the demonstrations), for policies or for a judge."""
        data = self.space.data
        source = data.demonstrations if objective is None else data.preferences[objective]
        common = {
            "objective": objective,
            "shape": shape,
            "max_length": data.max_length,
            "judge_fraction": data.judge_fraction,
            "side": "policy" if judge is None else "judge",
            "held_out_fraction": 0.0 if judge is None else judge.held_out_fraction,
            "prompt_template": self.space.prompt_template,
            "excluded_prompts": self.excluded_prompts,
        }
        parents = {"model": self.model}
        payload: FilesPayload | DemonstrationsPayload | SampledPayload
        match source:
            case Files():
                content = self.graph.content(source.path, source.revision)
                payload = FilesPayload.model_validate(
                    common | {"rows_from": "files", "files": source, "content": content}
                )
            case SyntheticDemonstrations():
                payload = DemonstrationsPayload.model_validate(
                    common | {"rows_from": "demonstrations", "settings": source, "world": WORLD_VERSION}
                )
            case SyntheticPreferences():
                parents["preferences"] = self._preferences(source)
                payload = SampledPayload.model_validate(common | {"rows_from": "preferences"})
            case None:
                raise AssertionError("validation keeps training.sft and data.demonstrations together")
        label = f"data {objective or 'demonstrations'} ({shape}{', judge' if judge else ''})"
        return self.graph.add("data", label, payload, parents)

    def _preferences(self, source: SyntheticPreferences) -> str:
        probabilities = self.probabilities({"policy": self.sft}, None, "sft")
        payload = PreferencesPayload(settings=source, world=WORLD_VERSION)
        return self.graph.add("preferences", "preferences", payload, {"probabilities": probabilities})


def chain_text(chain: Chain) -> str:
    """`dpo:helpfulness>dpo:harmlessness`."""
    return ">".join(f"{method}:{objective}" for method, objective in chain)


def chain_label(chain: Chain, kl_parameters: tuple[float, ...]) -> str:
    """`dpo:helpfulness@0.1>dpo:harmlessness@0.05`."""
    return ">".join(f"{m}:{o}@{p:g}" for (m, o), p in zip(chain, kl_parameters, strict=True))


def seed_label(space: Space, seed: int) -> str:
    """The end of a label that names the seed, where the space has several."""
    return f" seed {seed}" if len(space.seeds) > 1 else ""
