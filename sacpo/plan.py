"""A space expanded into trials and a graph of content-addressed steps.

Pure: reads the space and hashes the files that it names; imports neither torch nor ray and writes nothing. A step's
payload holds everything that can change its output, with its parents by id; `local` holds where to find things here,
and is not hashed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sacpo.data.prompts import Prompt, read_prompts
from sacpo.data.synthetic import PROMPTS, WORLD_VERSION
from sacpo.identity import content_id, source_identity
from sacpo.space import (
    ChainGrid,
    EmbeddedPrompts,
    Files,
    KTOTraining,
    NaiveMerge,
    Parent,
    PretrainedModel,
    PSacpo,
    RewardModelJudge,
    Space,
    TrainedJudge,
    Training,
    parse_chain,
)

Kind = Literal["model", "preferences", "data", "train", "merge", "probabilities", "respond", "judge"]
CRITERIA = ("helpfulness", "harmlessness")

# A recipe's version goes up when the code that carries the step out changes its output on purpose.
RECIPES: dict[str, int] = {
    "model": 1,
    "preferences": 1,
    "data": 1,
    "train": 1,
    "merge": 1,
    "probabilities": 1,
    "respond": 1,
    "judge": 1,
}


@dataclass(frozen=True)
class Step:
    """A unit of work. `parents` maps a role (policy, data, answers, ...) to a step id."""

    id: str
    kind: Kind
    label: str
    payload: dict[str, Any]
    parents: dict[str, str]
    local: dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One policy of the sweep, evaluated: a row of the table. Steps are given by id."""

    trial_id: str
    label: str
    method: str
    chain: str
    policy: str
    kl_parameters: tuple[float, ...] = ()
    q: float | None = None
    seed: int | None = None
    probabilities: str | None = None
    respond: dict[str, str] = field(default_factory=dict)
    judge: dict[str, str] = field(default_factory=dict)

    @property
    def beta(self) -> float | None:
        return self.kl_parameters[0] if self.kl_parameters else None

    @property
    def beta_over_lambda(self) -> float | None:
        """The second stage's KL parameter; none where the chain has not exactly two stages."""
        return self.kl_parameters[1] if len(self.kl_parameters) == 2 else None

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps that this trial asks for itself, in the order it asks."""
        measured = (self.probabilities,) if self.probabilities is not None else ()
        return (self.policy, *measured, *self.respond.values(), *self.judge.values())


@dataclass(frozen=True)
class Plan:
    space: Space
    trials: tuple[Trial, ...]
    steps: dict[str, Step]
    prompts: dict[str, list[Prompt]]
    notes: tuple[str, ...]

    @property
    def baseline(self) -> Trial:
        """The SFT policy's trial, against which all others are judged."""
        return self.trials[0]

    def ancestors(self, step_id: str) -> list[str]:
        """The step and everything it needs, parents before children."""
        seen: dict[str, None] = {}

        def visit(current: str) -> None:
            for parent in self.steps[current].parents.values():
                visit(parent)
            seen.setdefault(current)

        visit(step_id)
        return list(seen)

    def trainings(self) -> tuple[int, int]:
        """How many trainings the sweep needs, and how many it would need if no trial shared one."""
        alone = [s for t in self.trials for s in self.ancestors(t.policy) if self.steps[s].kind == "train"]
        judges = [s.id for s in self.steps.values() if s.kind == "train" and s.payload["method"] == "reward"]
        return len({*alone, *judges}), len(alone) + len(judges)


def make_plan(space: Space) -> Plan:
    """Expand a space.

    Raises:
        DataError: a file that the space names cannot be read.
    """
    return _Planner(space).plan()


class _Planner:
    def __init__(self, space: Space) -> None:
        self.space = space
        self.steps: dict[str, Step] = {}
        self.trials: dict[str, Trial] = {}
        self.identities: dict[tuple[str, str | None], dict[str, str]] = {}
        self.prompts = {name: self._prompts(getattr(space.evaluation, name).prompts) for name in CRITERIA}
        self.model = self._model()
        self.sft = self._sft()

    def plan(self) -> Plan:
        self._trial("sft", "sft", "", self.sft)
        for grid in self.space.chains:
            for chain, parameters, seed in self._variants(grid):
                for length in range(1, len(parameters) + 1):
                    self._chain_trial(chain[:length], parameters[:length], seed)
        for merge in self.space.merges:
            self._merge(merge)
        return Plan(self.space, tuple(self.trials.values()), self.steps, self.prompts, tuple(self._notes()))

    # ---------------------------------------------------------------------------------------------------- the steps

    def _add(
        self,
        kind: Kind,
        label: str,
        payload: dict[str, Any],
        parents: dict[str, str] | None = None,
        local: dict[str, Any] | None = None,
    ) -> str:
        parents = parents or {}
        whole = {"recipe": RECIPES[kind], **payload, "parents": parents}
        step_id = content_id(kind, whole)
        self.steps.setdefault(step_id, Step(step_id, kind, label, whole, parents, local or {}))
        return step_id

    def _identity(self, path: str, revision: str | None) -> dict[str, str]:
        key = (path, revision)
        if key not in self.identities:
            self.identities[key] = source_identity(path, revision)
        return self.identities[key]

    def _model(self) -> str:
        model = self.space.model
        if isinstance(model, PretrainedModel):
            inside = Path(model.path) / (model.gguf_file or "")  # a GGUF file holds weights and tokenizer
            source = self._identity(str(inside) if inside.exists() else model.path, model.revision)
            payload = {**model.model_dump(exclude={"path", "revision"}), "source": source}
            return self._add("model", "model", payload, local={"path": model.path, "revision": model.revision})
        return self._add("model", "model", {**model.model_dump(), "world": WORLD_VERSION})

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
        pairs = self._add(
            "preferences", "preferences", payload, {"probabilities": self._probabilities(self.sft, "sft")}
        )
        return {"format": "pku-saferlhf", "max_bad_share": 0.0}, {"preferences": pairs}, {}

    def _files(self, source: Files) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
        payload = {**source.model_dump(exclude={"path", "revision"})}
        payload["source"] = self._identity(source.path, source.revision)
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
        texts = sorted({prompt.text for prompts in self.prompts.values() for prompt in prompts})
        exclude = [] if self.space.embedded else texts
        payload |= {
            "objective": objective,
            "shape": shape,
            "max_length": data.max_length,
            "judge_share": data.judge_share,
            "side": "policy" if judge is None else "judge",
            "held_out_share": 0.0 if judge is None else judge.held_out_share,
            "prompt_template": self.space.prompt_template,
            "excluded_prompts": content_id("prompts", {"texts": exclude}),
        }
        label = f"data {objective or 'demonstrations'} ({shape}{', judge' if judge else ''})"
        return self._add("data", label, payload, {"model": self.model, **parents}, {**local, "exclude": exclude})

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
        return self._add("train", label, payload, {"policy": policy, "data": data})

    def _chain(self, chain: list[tuple[str, str]], parameters: tuple[float, ...], seed: int) -> str:
        policy = self.sft
        for i, ((method, objective), parameter) in enumerate(zip(chain, parameters, strict=True)):
            settings = self.space.training.settings(method, objective)
            assert settings is not None, "conflicts() refuses a stage without settings"
            data = self._data(objective, "labelled" if method == "kto" else "pairs")
            label = f"train {_chain_label(chain[: i + 1], parameters[: i + 1])}{self._seed_label(seed)}"
            policy = self._training(method, objective, settings, parameter, seed, policy, data, label)
        return policy

    def _probabilities(self, policy: str, label: str) -> str:
        return self._add("probabilities", f"probabilities {label}", {"world": WORLD_VERSION}, {"policy": policy})

    def _respond(self, criterion: str, policy: str, label: str) -> str:
        generation = self.space.evaluation.generation.model_dump()
        prompts = [[prompt.prompt_id, prompt.text, prompt.category] for prompt in self.prompts[criterion]]
        payload = {
            "generation": generation,
            "prompts": content_id("prompts", {"prompts": prompts}),
            "prompt_template": self.space.prompt_template,
        }
        parents = {"policy": policy}
        if not self.space.embedded and policy != self.sft and generation["temperature"] == 1.0:
            parents["sft"] = self.sft  # KL to the SFT policy is estimated on the policy's own samples
        return self._add("respond", f"respond {criterion} {label}", payload, parents, {"prompts": prompts})

    def _judge(self, criterion: str, respond: str, label: str) -> str:
        judge = getattr(self.space.evaluation, criterion).judge
        payload: dict[str, Any] = {"criterion": criterion, "judge": judge.model_dump(exclude={"path", "revision"})}
        parents = {"answers": respond, "baseline": self.baseline.respond[criterion]}
        local: dict[str, Any] = {}
        if isinstance(judge, RewardModelJudge):
            payload["source"] = self._identity(judge.path, judge.revision)
            local = {"path": judge.path, "revision": judge.revision}
        elif isinstance(judge, TrainedJudge):
            data = self._data(judge.objective, "pairs", judge)
            parents["model"] = self._training(
                "reward", judge.objective, judge.training, None, judge.seed, self.model, data, f"judge {criterion}"
            )
            payload["judge"].pop("training")  # the model's id holds it
            payload |= {"prompt_template": self.space.prompt_template, "max_length": self.space.data.max_length}
        return self._add("judge", f"judge {criterion} {label}", payload, parents, local)

    # ----------------------------------------------------------------------------------------------------- the trials

    @property
    def baseline(self) -> Trial:
        return next(iter(self.trials.values()))

    def _trial(self, method: str, label: str, chain: str, policy: str, **values: Any) -> None:
        trial_id = content_id("trial", {"policy": policy})
        if trial_id in self.trials:
            return
        probabilities = self._probabilities(policy, label) if self.space.embedded else None
        respond = {criterion: self._respond(criterion, policy, label) for criterion in CRITERIA}
        judge = {c: self._judge(c, respond[c], label) for c in CRITERIA} if self.trials else {}
        self.trials[trial_id] = Trial(
            trial_id, label, method, chain, policy, probabilities=probabilities, respond=respond, judge=judge, **values
        )

    def _chain_trial(self, chain: list[tuple[str, str]], parameters: tuple[float, ...], seed: int) -> None:
        label = _chain_label(chain, parameters) + self._seed_label(seed)
        method = "one-step" if len(chain) == 1 else "sacpo"
        policy = self._chain(chain, parameters, seed)
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
            policy = self._add("merge", f"merge {label}", {"q": q}, {"first": first, "second": second})
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

    def _prompts(self, source: Any) -> list[Prompt]:
        if isinstance(source, EmbeddedPrompts):
            wanted = [(text, category) for text, category in PROMPTS if source.category in ("all", category)]
            return [Prompt.of(text, category) for text, category in wanted]
        return read_prompts(source.path, source.limit)

    def _notes(self) -> Iterator[str]:
        methods = {step.payload["method"] for step in self.steps.values() if step.kind == "train"}
        objectives = {step.payload["objective"] for step in self.steps.values() if step.kind == "train"}
        for method in ("dpo", "kto"):
            if getattr(self.space.training, method) is not None and method not in methods:
                yield f"training.{method} is used by no chain of this space"
        for objective in self.space.data.preferences:
            if objective not in objectives:
                yield f"data.preferences.{objective} is used by no chain of this space"
        for identity in self.identities.values():
            if "hub" in identity and not re.fullmatch("[0-9a-f]{40}", identity["revision"]):
                yield f"{identity['hub']}: revision {identity['revision']!r} may move; a commit would pin it"


def _chain_text(chain: list[tuple[str, str]]) -> str:
    return ">".join(f"{method}:{objective}" for method, objective in chain)


def _chain_label(chain: list[tuple[str, str]], parameters: tuple[float, ...]) -> str:
    return ">".join(f"{m}:{o}@{p:g}" for (m, o), p in zip(chain, parameters, strict=True))
