"""Plans the steps that evaluate policies: answers, verdicts, canaries and sentinels.

A judge step depends on two `generate` steps that answer the same prompts. The models of trained judges are planned
before (`sacpo.planning.training_steps`) and given here by `judge_model_key`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import assert_never

from sacpo.data.canaries import CANARY_VERSION, REFUSAL, SYNTHETIC_REFUSAL
from sacpo.errors import DataError, SacpoError
from sacpo.judges.rubric import PROMPT_VERSION, RUBRICS
from sacpo.planning.graph import Graph
from sacpo.planning.judge_payloads import (
    AnnotationFile,
    CanaryPayload,
    JudgeInputs,
    JudgePayload,
    LLMInstructions,
    RewardModelContent,
    Round,
    SyntheticScale,
    TrainedModelFormat,
)
from sacpo.planning.payloads import GeneratePayload
from sacpo.planning.plan import Plan, Trial
from sacpo.planning.served import ServedPayload
from sacpo.spaces.evaluation import (
    AnnotationsJudge,
    Generation,
    GoldJudge,
    JudgeSettings,
    LLMJudge,
    NoisyJudge,
    RewardModelJudge,
    TrainedJudge,
)
from sacpo.spaces.merging import LINEAR, Combination
from sacpo.spaces.served import ServedPolicy
from sacpo.spaces.space import Space
from sacpo.synthetic.world import WORLD_VERSION

_LONGEST_OF = 4  # draws from the SFT policy of which the longest-answer sentinel keeps one


class EvaluationSteps:
    """Adds evaluation steps to a graph.

    Args:
        graph: Where the steps go.
        space: The space.
        prompts: Criterion to the id of its prompts.
        judge_models: `judge_model_key` of each trained judge to the step that trains its model.
    """

    def __init__(self, graph: Graph, space: Space, prompts: Mapping[str, str], judge_models: Mapping[str, str]) -> None:
        self.graph, self.space, self.prompts, self.judge_models = graph, space, prompts, judge_models
        self.criteria = space.evaluation.criteria

    def generate(
        self, policy: dict[str, str], q: float | None, combination: Combination, sft: str, label: str
    ) -> dict[str, str]:
        """Each criterion's answers of a policy."""
        parents = dict(policy)
        generation = self.space.evaluation.generation
        plain_samples = generation.temperature == 1.0 and generation.top_p == 1.0
        if not self.space.synthetic and policy != {"policy": sft} and plain_samples:
            parents["sft"] = sft  # KL to the SFT policy is estimated on the policy's own samples
        return {criterion: self._answers(criterion, label, parents, q, combination) for criterion in self.criteria}

    def sentinel(self, name: str, sft: str) -> dict[str, str]:
        """Each criterion's answers of a sentinel: one refusal to every prompt, or the longest of several answers."""
        parents = {"policy": sft}
        if name == "longest-answer":
            return {c: self._answers(c, name, parents, keep_longest_of=_LONGEST_OF) for c in self.criteria}
        if name == "always-refuse":
            refusal = SYNTHETIC_REFUSAL if self.space.synthetic else REFUSAL
            return {c: self._answers(c, name, parents, refusal=refusal) for c in self.criteria}
        raise AssertionError(f"unknown sentinel {name}")

    def served(self, name: str, policy: ServedPolicy) -> dict[str, str]:
        """Each criterion's answers of a policy that is served elsewhere."""
        own = {"engine", "batch_size"}  # the server has its own
        generation = Generation(**self.space.evaluation.generation.model_dump(exclude=own))
        return {
            criterion: self.graph.add(
                "served",
                f"answers {criterion} {name}",
                ServedPayload(policy=policy, generation=generation, prompts=self.prompts[criterion]),
            )
            for criterion in self.criteria
        }

    def _answers(
        self,
        criterion: str,
        label: str,
        parents: dict[str, str],
        q: float | None = None,
        combination: Combination = LINEAR,
        refusal: str | None = None,
        keep_longest_of: int = 1,
    ) -> str:
        payload = GeneratePayload(
            generation=self.space.evaluation.generation,
            prompts=self.prompts[criterion],
            prompt_template=self.space.prompt_template,
            q=q,
            combination=combination,
            refusal=refusal,
            keep_longest_of=keep_longest_of,
            loading=self.space.model.loading,
        )
        return self.graph.add("generate", f"generate {criterion} {label}", payload, parents)

    def judge(self, answers: dict[str, str], baseline: dict[str, str], label: str) -> dict[str, str]:
        """Each criterion's verdicts of its own judge on one side's answers to all prompts, against the baseline's."""
        return {
            c: self.judge_step(c, settings.judge, label, answers, baseline) for c, settings in self.criteria.items()
        }

    def judges(
        self,
        answers: dict[str, str],
        baseline: dict[str, str],
        label: str,
        asked: Round | None = None,
        race: str | None = None,
    ) -> dict[str, dict[str, str]]:
        """Verdicts on one side's answers against the baseline's, by each judge and criterion.

        Args:
            answers: Each criterion's step of the answers.
            baseline: The same of the baseline.
            label: Label of the policy.
            asked: The prompts that are asked; None for all.
            race: The step that decides whether they are asked; None if they are in any case.

        Returns:
            Name of the judge in the panel ("" for a criterion's own) and criterion to the step.
        """
        chosen = [("", criterion, settings.judge) for criterion, settings in self.criteria.items()]
        chosen += [(n, criterion, judge) for criterion, s in self.criteria.items() for n, judge in s.panel.items()]
        steps: dict[str, dict[str, str]] = {}
        for name, criterion, judge in chosen:
            by = f" by {name}" if name else ""
            step = self.judge_step(criterion, judge, f"{label}{by}", answers, baseline, asked, race)
            steps.setdefault(name, {})[criterion] = step
        return steps

    def judge_step(
        self,
        criterion: str,
        judge: JudgeSettings,
        label: str,
        answers: dict[str, str],
        baseline: dict[str, str],
        asked: Round | None = None,
        race: str | None = None,
    ) -> str:
        """One judge's verdicts on one criterion; the arguments are those of `judges`."""
        inputs, parents = self._inputs(criterion, judge)
        payload = JudgePayload(criterion=criterion, judge=judge, inputs=inputs, round=asked)
        sides = {"answers": answers[criterion], "baseline": baseline[criterion]}
        decided_by = {} if race is None else {"race": race}
        return self.graph.add("judge", f"judge {criterion} {label}", payload, sides | parents | decided_by)

    def canary(self, criterion: str, judge: JudgeSettings) -> str:
        """One judge's verdicts on canned pairs."""
        inputs, parents = self._inputs(criterion, judge)
        payload = CanaryPayload(
            criterion=criterion,
            judge=judge,
            inputs=inputs,
            pairs=CANARY_VERSION,
            sentences="synthetic" if self.space.synthetic else "text",
            max_fooled_fraction=self.space.evaluation.max_fooled_fraction,
        )
        return self.graph.add("canary", f"canary {criterion} canned pairs", payload, parents)

    def canaries(self) -> list[str]:
        """The canary of every judge of the space."""
        return [self.canary(criterion, judge) for criterion, judge in judges_of(self.space) if not judge.is_imported]

    def _inputs(self, criterion: str, judge: JudgeSettings) -> tuple[JudgeInputs, dict[str, str]]:
        """What a judge needs beside the answers, and the steps that it depends on."""
        match judge:
            case GoldJudge() | NoisyJudge():
                return SyntheticScale(world=WORLD_VERSION), {}
            case RewardModelJudge():
                return RewardModelContent(content=self.graph.content(judge.path, judge.revision)), {}
            case TrainedJudge():
                template, max_length = self.space.prompt_template, self.space.data.max_length
                model = self.judge_models.get(judge_model_key(judge))
                if model is None:
                    raise SacpoError(
                        f"evaluation.{criterion}: the sweep has trained no such judge (kind: {judge.kind}); add it to "
                        f"evaluation.{criterion}.panel of the space and run that sweep in a new results folder with "
                        "the same --store"
                    )
                return TrainedModelFormat(prompt_template=template, max_length=max_length), {"model": model}
            case LLMJudge():
                return LLMInstructions(rubric=_rubric(judge, criterion), prompt_version=PROMPT_VERSION), {}
            case AnnotationsJudge():
                return AnnotationFile(annotations=self.graph.content(judge.path, None)), {}
            case _:
                assert_never(judge)


def judges_of(space: Space) -> Iterator[tuple[str, JudgeSettings]]:
    """(criterion, judge) of every judge of a space, those of the panels included."""
    for criterion, settings in space.evaluation.criteria.items():
        for judge in (settings.judge, *settings.panel.values()):
            yield criterion, judge


def judge_model_key(judge: TrainedJudge) -> str:
    """Key of the model that a trained judge uses: its settings without those of the comparison."""
    return judge.model_dump_json(exclude={"tie_margin", "verdicts"})


def add_judge(
    plan: Plan, name: str, judges: Mapping[str, JudgeSettings], trial_ids: Collection[str] | None = None
) -> tuple[Plan, tuple[str, ...]]:
    """Add a judge to the panel of a plan, for the answers that the plan's trials have.

    Args:
        plan: The plan.
        name: The judge's name in the panel. Steps of a judge of this name that was added before are replaced.
        judges: The judge's settings by criterion.
        trial_ids: The trials that it judges; None for all.

    Returns:
        The plan with the new steps, and the steps that try the judge on canned pairs; they are in the plan's steps, but
        not among its canaries.

    Raises:
        SacpoError: the judge would have to be trained.
        DataError: the judge's rubric or model cannot be read.
    """
    graph = Graph(plan.steps)
    models = {
        judge_model_key(step.payload.judge): step.parents["model"]
        for step in plan.steps.values()
        if isinstance(step.payload, JudgePayload) and isinstance(step.payload.judge, TrainedJudge)
    }
    planner = EvaluationSteps(graph, plan.space, plan.criteria, models)

    def judged(trial: Trial) -> Trial:
        if trial is plan.baseline:
            return trial
        if trial_ids is not None and trial.trial_id not in trial_ids:
            return trial.model_copy(update={"panel": {key: steps for key, steps in trial.panel.items() if key != name}})
        steps = {
            criterion: planner.judge_step(
                criterion, judge, f"{trial.label} by {name}", trial.generate, plan.baseline.generate
            )
            for criterion, judge in judges.items()
        }
        return trial.model_copy(update={"panel": trial.panel | {name: steps}})

    trials = tuple(judged(trial) for trial in plan.trials)
    canaries = tuple(planner.canary(criterion, judge) for criterion, judge in judges.items() if not judge.is_imported)
    return plan.model_copy(update={"trials": trials, "steps": graph.steps}), canaries


def _rubric(judge: LLMJudge, criterion: str) -> str:
    if judge.rubric is None:
        return RUBRICS[criterion]
    try:
        text = Path(judge.rubric).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"rubric {judge.rubric}: cannot be read as UTF-8 text: {error}") from None
    if not text:
        raise DataError(
            f"rubric {judge.rubric}: is empty; write in it what makes an answer better, or leave the setting out"
        )
    return text
