"""Plans how policies are assessed: answers, judges, canaries, sentinels. Part of `sacpo.planning.planner`; pure.

Every judging rests on two steps that answered the same prompts. What makes a judge what it is goes into the payload and
so into the id; where and how it is reached goes into `local`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from sacpo.data.canaries import CANARY_VERSION, REFUSAL, SYNTHETIC_REFUSAL
from sacpo.data.prompts import Prompt, read_prompts
from sacpo.errors import DataError
from sacpo.judges.rubric import PROMPT_VERSION, RUBRICS
from sacpo.planning.identity import content_id, source_identity
from sacpo.planning.plan import RECIPES, Kind, Step
from sacpo.spaces.evaluation import (
    GoldJudge,
    Judge,
    LLMJudge,
    NoisyJudge,
    RewardModelJudge,
    SyntheticPrompts,
    TrainedJudge,
)
from sacpo.spaces.space import Space
from sacpo.synthetic.world import PROMPTS, WORLD_VERSION

_LONGEST_OF = 4  # draws from the SFT policy of which the longest-answer sentinel keeps one


class Graph:
    """The steps of a plan, each once."""

    def __init__(self) -> None:
        self.steps: dict[str, Step] = {}
        self.identities: dict[tuple[str, str | None], dict[str, str]] = {}

    def add(
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

    def identity(self, path: str, revision: str | None) -> dict[str, str]:
        key = (path, revision)
        if key not in self.identities:
            self.identities[key] = source_identity(path, revision)
        return self.identities[key]


class TrainJudge(Protocol):
    """Plans the training of a judge for a criterion; returns the step."""

    def __call__(self, judge: TrainedJudge, criterion: str) -> str: ...


class Assessment:
    """Plans the assessment of trials.

    Args:
        graph: Where the steps go.
        space: The space.
        train_judge: Plans a judge's own training.
    """

    def __init__(self, graph: Graph, space: Space, train_judge: TrainJudge) -> None:
        self.graph, self.space, self.train_judge = graph, space, train_judge
        self.criteria = space.evaluation.criteria
        self.prompts = {name: _prompts(criterion.prompts) for name, criterion in self.criteria.items()}

    def probabilities(self, policy: dict[str, str], q: float | None, label: str) -> str:
        payload = {"world": WORLD_VERSION} | _ratio(q)
        return self.graph.add("probabilities", f"probabilities {label}", payload, dict(policy))

    def generate(self, criterion: str, policy: dict[str, str], q: float | None, sft: str, label: str) -> str:
        """Answers to a criterion's prompts."""
        parents = dict(policy)
        if (
            not self.space.synthetic
            and policy != {"policy": sft}
            and self.space.evaluation.generation.temperature == 1.0
        ):
            parents["sft"] = sft  # KL to the SFT policy is estimated on the policy's own samples
        return self._answers(criterion, label, _ratio(q), parents)

    def sentinel(self, name: str, criterion: str, sft: str) -> str:
        """A sentinel's answers: one refusal to everything, or the longest of several draws from the SFT policy."""
        refusal = SYNTHETIC_REFUSAL if self.space.synthetic else REFUSAL
        extra = {"keep_longest_of": _LONGEST_OF} if name == "longest-answer" else {"refusal": refusal}
        return self._answers(criterion, name, extra, {"policy": sft})

    def _answers(self, criterion: str, label: str, extra: dict[str, Any], parents: dict[str, str]) -> str:
        prompts = [[prompt.prompt_id, prompt.text, prompt.category] for prompt in self.prompts[criterion]]
        payload = {
            "generation": self.space.evaluation.generation.model_dump(),
            "prompts": content_id("prompts", {"prompts": prompts}),
            "prompt_template": self.space.prompt_template,
            **extra,
        }
        return self.graph.add("generate", f"generate {criterion} {label}", payload, parents, {"prompts": prompts})

    def judge(self, generate: dict[str, str], baseline: dict[str, str], label: str) -> dict[str, str]:
        """Each criterion's judging of one side's answers against another's."""
        return {
            name: self._judging("judge", name, criterion.judge, label, generate[name], baseline[name])
            for name, criterion in self.criteria.items()
        }

    def panel(self, generate: dict[str, str], baseline: dict[str, str], label: str) -> dict[str, dict[str, str]]:
        """The like of `judge` for every further judge."""
        found: dict[str, dict[str, str]] = {}
        for name, criterion in self.criteria.items():
            for member, judge in criterion.panel.items():
                step = self._judging("judge", name, judge, f"{label} by {member}", generate[name], baseline[name])
                found.setdefault(member, {})[name] = step
        return found

    def canaries(self) -> list[str]:
        """A step for every judge that tries it on canned pairs."""
        return [self._judging("canary", name, judge, "canned pairs") for name, judge in self._judges()]

    def _judges(self) -> list[tuple[str, Judge]]:
        return [(n, judge) for n, c in self.criteria.items() for judge in (c.judge, *c.panel.values())]

    def _judging(self, kind: Kind, criterion: str, judge: Judge, label: str, *sides: str) -> str:
        payload: dict[str, Any] = {"criterion": criterion, "judge": judge.model_dump(exclude=_PLACES[type(judge)])}
        parents = dict(zip(("answers", "baseline"), sides, strict=False))
        local: dict[str, Any] = {}
        if kind == "canary":
            payload |= {"pairs": CANARY_VERSION, "sentences": "synthetic" if self.space.synthetic else "text"}
        if isinstance(judge, GoldJudge | NoisyJudge):
            payload["world"] = WORLD_VERSION
        elif isinstance(judge, RewardModelJudge):
            payload["source"] = self.graph.identity(judge.path, judge.revision)
            local = {"path": judge.path, "revision": judge.revision}
        elif isinstance(judge, TrainedJudge):
            parents["model"] = self.train_judge(judge, criterion)
            payload |= {"prompt_template": self.space.prompt_template, "max_length": self.space.data.max_length}
        elif isinstance(judge, LLMJudge):
            payload |= {"rubric": _rubric(judge, criterion), "prompt_version": PROMPT_VERSION}
            local = judge.model_dump(include={"base_url", "api_key_env", "calls"})
        return self.graph.add(kind, f"{kind} {criterion} {label}", payload, parents, local)


# What says where a judge is or how it is reached; what says what it is, is added to the payload instead.
_PLACES: dict[type, set[str]] = {
    GoldJudge: set(),
    NoisyJudge: set(),
    RewardModelJudge: {"path", "revision"},
    TrainedJudge: {"training"},
    LLMJudge: {"rubric", "base_url", "api_key_env", "calls"},
}


def _ratio(q: float | None) -> dict[str, Any]:
    return {} if q is None else {"q": q}


def _rubric(judge: LLMJudge, criterion: str) -> str:
    if judge.rubric is None:
        return RUBRICS[criterion]
    try:
        text = Path(judge.rubric).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"rubric {judge.rubric}: cannot be read as UTF-8 text: {error}") from None
    if not text:
        raise DataError(f"rubric {judge.rubric}: is empty; say in it what makes an answer better, or leave it out")
    return text


def _prompts(source: Any) -> list[Prompt]:
    if isinstance(source, SyntheticPrompts):
        wanted = [(text, category) for text, category in PROMPTS if source.category in ("all", category)]
        return [Prompt.of(text, category) for text, category in wanted]
    return read_prompts(source.path, source.limit)
