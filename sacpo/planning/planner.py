"""Expands a space into its plan.

Pure: reads the space and hashes the files that it names; imports neither torch nor ray and writes nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sacpo.planning.evaluation_steps import Assessment, Graph
from sacpo.planning.identity import content_id
from sacpo.planning.plan import Plan, Trial
from sacpo.spaces.evaluation import TrainedJudge
from sacpo.spaces.space import ChainGrid, Files, NaiveMerge, Parent, PretrainedModel, PSacpo, Space, parse_chain
from sacpo.spaces.training import KTOTraining, Training
from sacpo.synthetic.world import WORLD_VERSION


def make_plan(space: Space, canaries: bool = True) -> Plan:
    """Expand a space.

    Args:
        space: The space.
        canaries: Whether judges are tried on canned pairs and on the baseline against itself before policies train.

    Raises:
        DataError: a file that the space names cannot be read.
    """
    return _Planner(space).plan(canaries)


class _Planner:
    def __init__(self, space: Space) -> None:
        self.space = space
        self.trials: dict[str, Trial] = {}
        self.graph = Graph()
        self.assessment = Assessment(self.graph, space, self._train_judge)
        self.model = self._model()
        self.sft = self._sft()

    def plan(self, canaries: bool) -> Plan:
        checks = tuple(self.assessment.canaries()) if canaries else ()
        self._baseline(canaries)
        for grid in self.space.chains:
            for chain, parameters, seed in self._variants(grid):
                for length in range(1, len(parameters) + 1):
                    self._chain_trial(chain[:length], parameters[:length], seed)
        for merge in self.space.merges:
            self._merge(merge)
        for name in self.space.evaluation.sentinels:
            generate = {c: self.assessment.sentinel(name, c, self.sft) for c in self.assessment.criteria}
            trial_id = content_id("trial", {"sentinel": generate})
            self._assessed(Trial(trial_id, name, "sentinel", "", {}, generate=generate))
        trials, prompts = tuple(self.trials.values()), self.assessment.prompts
        return Plan(self.space, trials, self.graph.steps, prompts, tuple(self._notes()), checks)

    def _model(self) -> str:
        model = self.space.model
        if isinstance(model, PretrainedModel):
            inside = Path(model.path) / (model.gguf_file or "")  # a GGUF file holds weights and tokenizer
            source = self.graph.identity(str(inside) if inside.exists() else model.path, model.revision)
            payload = {**model.model_dump(exclude={"path", "revision"}), "source": source}
            return self.graph.add("model", "model", payload, local={"path": model.path, "revision": model.revision})
        return self.graph.add("model", "model", {**model.model_dump(), "world": WORLD_VERSION})

    def _sft(self) -> str:
        settings = self.space.training.sft
        if settings is None:
            return self.model
        data = self._data(None, "demonstrations")
        return self._training("sft", None, settings, None, settings.seed, self.model, data, "sft")

    def _preferences(self, objective: str) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
        source = self.space.data.preferences[objective]
        if isinstance(source, Files):
            return self._files(source)
        payload = {**source.model_dump(), "world": WORLD_VERSION}
        pairs = self.graph.add(
            "preferences",
            "preferences",
            payload,
            {"probabilities": self.assessment.probabilities({"policy": self.sft}, None, "sft")},
        )
        return {"format": "pku-saferlhf", "max_invalid_fraction": 0.0}, {"preferences": pairs}, {}

    def _files(self, source: Files) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
        payload = {**source.model_dump(exclude={"path", "revision"})}
        payload["source"] = self.graph.identity(source.path, source.revision)
        return payload, {}, {"path": source.path, "revision": source.revision}

    def _data(self, objective: str | None, shape: str, judge: TrainedJudge | None = None) -> str:
        data = self.space.data
        if objective is not None:
            payload, parents, local = self._preferences(objective)
        elif isinstance(data.demonstrations, Files):
            payload, parents, local = self._files(data.demonstrations)
        else:
            assert data.demonstrations is not None, "conflicts() keeps sft and demonstrations together"
            payload, parents, local = {**data.demonstrations.model_dump(), "world": WORLD_VERSION}, {}, {}
        texts = sorted({prompt.text for prompts in self.assessment.prompts.values() for prompt in prompts})
        exclude = [] if self.space.synthetic else texts
        payload |= {
            "objective": objective,
            "shape": shape,
            "max_length": data.max_length,
            "judge_fraction": data.judge_fraction,
            "side": "policy" if judge is None else "judge",
            "held_out_fraction": 0.0 if judge is None else judge.held_out_fraction,
            "prompt_template": self.space.prompt_template,
            "excluded_prompts": content_id("prompts", {"texts": exclude}),
        }
        label = f"data {objective or 'demonstrations'} ({shape}{', judge' if judge else ''})"
        return self.graph.add("data", label, payload, {"model": self.model, **parents}, {**local, "exclude": exclude})

    def _training(
        self,
        method: str,
        objective: str | None,
        settings: Training,
        kl_parameter: float | None,
        seed: int,
        policy: str,
        data: str,
        label: str,
    ) -> str:
        payload: dict[str, Any] = {
            "method": method,
            "objective": objective,
            "settings": settings.model_dump(exclude={"seed"}),
            "kl_parameter": kl_parameter,
            "seed": seed,
            "dtype": self.space.model.dtype,
            "max_length": self.space.data.max_length,
        }
        if isinstance(settings, KTOTraining):
            payload["settings"]["kl_batch_size"] = settings.kl_batch_size or settings.batch_size
        parents = {"policy": policy, "data": data}
        if kl_parameter is not None:
            shape = "labelled" if method == "kto" else "pairs"
            bank = {"shape": shape, "max_length": self.space.data.max_length}
            parents["reference"] = self.graph.add("reference", f"reference for {label}", bank, dict(parents))
        return self.graph.add("train", label, payload, parents)

    def _chain(self, chain: list[tuple[str, str]], parameters: tuple[float, ...], seed: int) -> str:
        policy = self.sft
        for i, ((method, objective), parameter) in enumerate(zip(chain, parameters, strict=True)):
            settings = self.space.training.settings(method, objective)
            assert settings is not None, "conflicts() refuses a stage without settings"
            data = self._data(objective, "labelled" if method == "kto" else "pairs")
            label = f"train {_chain_label(chain[: i + 1], parameters[: i + 1])}{self._seed_label(seed)}"
            policy = self._training(method, objective, settings, parameter, seed, policy, data, label)
        return policy

    def _train_judge(self, judge: TrainedJudge, criterion: str) -> str:
        data = self._data(judge.objective, "pairs", judge)
        return self._training(
            "reward", judge.objective, judge.training, None, judge.seed, self.model, data, f"judge {criterion}"
        )

    # ----------------------------------------------------------------------------------------------------- the trials

    def _baseline(self, canaries: bool) -> None:
        trial = self._unjudged("sft", "sft", "", {"policy": self.sft})
        judge = self.assessment.judge(trial.generate, trial.generate, "sft against itself") if canaries else {}
        self.baseline = self.trials[trial.trial_id] = replace(trial, judge=judge)

    def _trial(self, method: str, label: str, chain: str, policy: dict[str, str], **values: Any) -> None:
        trial = self._unjudged(method, label, chain, policy, **values)
        if trial.trial_id not in self.trials:
            self._assessed(trial)

    def _unjudged(self, method: str, label: str, chain: str, policy: dict[str, str], **values: Any) -> Trial:
        q = values.get("q")
        probabilities = self.assessment.probabilities(policy, q, label) if self.space.synthetic else None
        generate = {c: self.assessment.generate(c, policy, q, self.sft, label) for c in self.assessment.criteria}
        trial_id = content_id("trial", {"policy": policy, "q": q})
        return Trial(trial_id, label, method, chain, policy, probabilities=probabilities, generate=generate, **values)

    def _assessed(self, trial: Trial) -> None:
        """Add a trial with all its judge_steps."""
        judge = self.assessment.judge(trial.generate, self.baseline.generate, trial.label)
        panel = self.assessment.panel(trial.generate, self.baseline.generate, trial.label)
        rivals = [t for t in self.trials.values() if t is not self.baseline] if self.space.evaluation.all_pairs else []
        head_to_head = {
            rival.trial_id: self.assessment.judge(
                trial.generate, rival.generate, f"{trial.label} against {rival.label}"
            )
            for rival in rivals
            if trial.policy  # sentinels are not ranked
        }
        self.trials[trial.trial_id] = replace(trial, judge=judge, panel=panel, head_to_head=head_to_head)

    def _chain_trial(self, chain: list[tuple[str, str]], parameters: tuple[float, ...], seed: int) -> None:
        label = _chain_label(chain, parameters) + self._seed_label(seed)
        method = "one-step" if len(chain) == 1 else "sacpo"
        policy = {"policy": self._chain(chain, parameters, seed)}
        self._trial(method, label, _chain_text(chain), policy, kl_parameters=parameters, seed=seed)

    def _merge(self, merge: PSacpo | NaiveMerge) -> None:
        if isinstance(merge, PSacpo):
            grid = ChainGrid(chain=merge.chain, beta=merge.beta, beta_over_lambda=merge.beta_over_lambda)
            for chain, parameters, seed in self._variants(grid):
                ends = (chain[:-1], parameters[:-1]), (chain, parameters)
                self._merged(merge.method, merge.chain, ends, parameters, merge.q, seed)
        else:
            first, second = self._parent(merge.first), self._parent(merge.second)
            for seed in self.space.seeds:
                text = f"{merge.first.chain} + {merge.second.chain}"
                self._merged(merge.method, text, (first, second), first[1][:1], merge.q, seed)

    def _merged(
        self,
        method: str,
        chain: str,
        ends: tuple[tuple[list[tuple[str, str]], tuple[float, ...]], tuple[list[tuple[str, str]], tuple[float, ...]]],
        parameters: tuple[float, ...],
        ratios: list[float],
        seed: int,
    ) -> None:
        first, second = (self._chain(*end, seed) for end in ends)
        inner = _chain_label(*ends[1])
        if method == "naive-merge":
            inner = f"{_chain_label(*ends[0])} + {inner}"
        for q in ratios:
            label = f"{method} q={q:g} ({inner}){self._seed_label(seed)}"
            policy = {"first": first, "second": second}
            self._trial(method, label, chain, policy, kl_parameters=parameters, q=q, seed=seed)

    def _variants(self, grid: ChainGrid) -> Iterator[tuple[list[tuple[str, str]], tuple[float, ...], int]]:
        chain = parse_chain(grid.chain)
        for seed in self.space.seeds:
            for parameters in itertools.product(grid.beta, *(grid.beta_over_lambda or [])):
                yield chain, parameters, seed

    def _parent(self, parent: Parent) -> tuple[list[tuple[str, str]], tuple[float, ...]]:
        return parse_chain(parent.chain), (parent.beta, *(grid[0] for grid in parent.beta_over_lambda or []))

    def _seed_label(self, seed: int) -> str:
        return f" seed {seed}" if len(self.space.seeds) > 1 else ""

    def _notes(self) -> Iterator[str]:
        methods = {step.payload["method"] for step in self.graph.steps.values() if step.kind == "train"}
        objectives = {step.payload["objective"] for step in self.graph.steps.values() if step.kind == "train"}
        for method in ("dpo", "kto"):
            if getattr(self.space.training, method) is not None and method not in methods:
                yield f"training.{method} is used by no chain of this space"
        for objective in self.space.data.preferences:
            if objective not in objectives:
                yield f"data.preferences.{objective} is used by no chain of this space"
        for identity in self.graph.identities.values():
            if "hub" in identity and not re.fullmatch("[0-9a-f]{40}", identity["revision"]):
                yield f"{identity['hub']}: revision {identity['revision']!r} may move; a commit would pin it"


def _chain_text(chain: list[tuple[str, str]]) -> str:
    return ">".join(f"{method}:{objective}" for method, objective in chain)


def _chain_label(chain: list[tuple[str, str]], parameters: tuple[float, ...]) -> str:
    return ">".join(f"{m}:{o}@{p:g}" for (m, o), p in zip(chain, parameters, strict=True))
