"""What single settings of a space allow but their combination does not."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from sacpo.spaces.evaluation import Judge, LLMJudge, TrainedJudge
from sacpo.spaces.space import (
    ChainGrid,
    Files,
    Parent,
    PSacpo,
    Space,
    SyntheticModel,
    parse_chain,
)
from sacpo.spaces.training import KTOTraining, Training

Where = tuple[str | int, ...]
Report = Callable[[Where, str], None]


def conflicts(space: Space) -> list[tuple[Where, str]]:
    """What single settings allow but their combination does not: (path of a setting, the problem and the way out)."""
    found: list[tuple[Where, str]] = []

    def problem(where: Where, text: str) -> None:
        found.append((where, f"{dotted(where)}: {text}"))

    def check_chain(where: Where, grid: ChainGrid | PSacpo | Parent) -> None:
        stages = parse_chain(grid.chain)
        for method, objective in stages:
            if objective not in space.data.preferences:
                problem(
                    (*where, "chain"),
                    f"unknown objective {objective!r}; data.preferences has {nearest(space, objective)}",
                )
            if getattr(space.training, method) is None:
                problem((*where, "chain"), f"has a {method} stage, but training.{method} is absent; give its settings")
        given = len(grid.beta_over_lambda or [])
        if given != len(stages) - 1:
            problem(
                (*where, "beta_over_lambda"),
                f"{grid.chain} has {len(stages) - 1} stage(s) after the first, but values for {given} are given; "
                "give one list of values for each (and none for a chain of one stage)",
            )

    for i, grid in enumerate(space.chains):
        check_chain(("chains", i), grid)
    for i, merge in enumerate(space.merges):
        if isinstance(merge, PSacpo):
            check_chain(("merges", i), merge)
            if len(parse_chain(merge.chain)) < 2:
                problem(("merges", i, "chain"), "merges the policies before and after its last stage; give two or more")
        else:
            for side in ("first", "second"):
                parent = getattr(merge, side)
                check_chain(("merges", i, side), parent)
                if parent.beta_over_lambda is not None and any(len(grid) != 1 for grid in parent.beta_over_lambda):
                    problem(("merges", i, side, "beta_over_lambda"), "a parent is one policy; give one value per stage")
    _model_conflicts(space, problem)
    _judge_conflicts(space, problem)
    _override_conflicts(space, problem)
    _batch_conflicts(space, problem)
    return found


def _model_conflicts(space: Space, problem: Report) -> None:
    if isinstance(space.model, SyntheticModel):
        if space.training.sft is None:
            problem(("training",), "the synthetic model starts untrained; give training.sft")
        if space.model.hidden_size % space.model.heads:
            problem(("model", "heads"), "must divide model.hidden_size")
    parts: list[tuple[Where, Any]] = [(("data", "preferences", n), s) for n, s in space.data.preferences.items()]
    if space.data.demonstrations is not None:
        parts.append((("data", "demonstrations"), space.data.demonstrations))
    parts += [(("evaluation", name, "prompts"), c.prompts) for name, c in space.evaluation.criteria.items()]
    for where, part in parts:
        if (part.kind == "synthetic") != space.synthetic:
            problem(where, f"is {part.kind}, but model.kind is {space.model.kind}; they go together")
    if (space.training.sft is None) != (space.data.demonstrations is None):
        problem(("data", "demonstrations"), "training.sft and data.demonstrations go together; give both or neither")


def judges(space: Space) -> list[tuple[Where, Judge]]:
    """Every judge of a space, the panel's too, with the path of its setting."""
    found: list[tuple[Where, Judge]] = []
    for name, criterion in space.evaluation.criteria.items():
        found.append((("evaluation", name, "judge"), criterion.judge))
        found += [(("evaluation", name, "panel", member), judge) for member, judge in criterion.panel.items()]
    return found


def _judge_conflicts(space: Space, problem: Report) -> None:
    trained = False
    for where, judge in judges(space):
        if judge.kind in ("gold", "noisy") and not space.synthetic:
            problem(where, f"{judge.kind} is the synthetic world's; name an llm, reward_model or trained_reward_model")
        if isinstance(judge, TrainedJudge):
            trained = True
            if judge.objective not in space.data.preferences:
                problem((*where, "objective"), f"data.preferences has {nearest(space, judge.objective)}")
            elif not isinstance(space.data.preferences[judge.objective], Files):
                problem(where, "learns from preference files; the synthetic world has the gold judge")
        if isinstance(judge, LLMJudge):
            _endpoint_conflicts(where, judge, problem)
    if trained and space.data.judge_fraction == 0:
        problem(("data", "judge_fraction"), "a trained judge needs prompts of its own; give a share such as 0.3")
    if not trained and space.data.judge_fraction > 0:
        problem(("data", "judge_fraction"), "keeps prompts for a trained judge, and there is none; leave it out")


def _endpoint_conflicts(where: Where, judge: LLMJudge, problem: Report) -> None:
    url = judge.base_url
    if url is not None and not url.startswith(("http://", "https://")):
        problem((*where, "base_url"), f"{url!r} must begin with http:// or https://, and mostly ends with /v1")
    elif url is not None and "@" in url:
        problem((*where, "base_url"), "holds a user name or a key; give keys through the environment (api_key_env)")
    prices = judge.calls.price_prompt, judge.calls.price_completion
    if judge.calls.max_spend is not None and (None in prices or not any(prices)):
        problem((*where, "calls", "max_spend"), "needs calls.price_prompt and calls.price_completion to be counted")


def _override_conflicts(space: Space, problem: Report) -> None:
    for key in space.training.overrides:
        where: Where = ("training", "overrides", key)
        try:
            ((method, objective),) = parse_chain(key)
        except ValueError:
            problem(where, "must name one stage, such as dpo:harmlessness")
            continue
        if objective not in space.data.preferences:
            problem(where, f"unknown objective {objective!r}; data.preferences has {nearest(space, objective)}")
        if getattr(space.training, method) is None:
            problem(where, f"changes training.{method}, which is absent")


def _batch_conflicts(space: Space, problem: Report) -> None:
    training = space.training
    settings: list[tuple[Where, Training | None]] = [
        (("training", "sft"), training.sft),
        (("training", "dpo"), training.dpo),
        (("training", "kto"), training.kto),
        *((("training", "overrides", key), value) for key, value in training.merged_overrides().items()),
    ]
    settings += [((*w, "training"), judge.training) for w, judge in judges(space) if isinstance(judge, TrainedJudge)]
    for where, value in settings:
        if value is not None:
            _check_batch(problem, where, value, space.resources.workers)


def _check_batch(problem: Report, where: Where, settings: Training, workers: int) -> None:
    if settings.batch_size % workers:
        problem((*where, "batch_size"), f"{settings.batch_size} is not a multiple of resources.workers ({workers})")
    if isinstance(settings, KTOTraining):
        kl = settings.kl_batch_size or settings.batch_size
        if settings.batch_size % kl or kl % workers or kl // workers < 2:
            problem(
                (*where, "kl_batch_size"),
                f"{kl} must divide batch_size ({settings.batch_size}) and give each of the {workers} workers 2 or more",
            )


def dotted(where: Where) -> str:
    """A path of keys as a user writes it: `chains.0.beta`."""
    return ".".join(str(key) for key in where) or "the space"


def nearest(space: Space, objective: str) -> str:
    known = sorted(space.data.preferences)
    near = difflib.get_close_matches(objective, known, n=1)
    return f"{', '.join(known)}{f'; did you mean {near[0]}?' if near else ''}"
