"""The judges of a space, and the checks of their settings; the models check single settings."""

from __future__ import annotations

from sacpo.spaces.document import Report, Setting
from sacpo.spaces.endpoint import EndpointSettings
from sacpo.spaces.evaluation import JudgeSettings, NoisyJudge, TrainedJudge
from sacpo.spaces.space import Files, Space


def judges(space: Space) -> list[tuple[Setting, JudgeSettings]]:
    """All judges of a space, including those of the panels, each with the path of its setting."""
    result: list[tuple[Setting, JudgeSettings]] = []
    for name, criterion in space.evaluation.criteria.items():
        result.append((("evaluation", name, "judge"), criterion.judge))
        result += [(("evaluation", name, "panel", member), judge) for member, judge in criterion.panel.items()]
    return result


def endpoints(space: Space) -> list[tuple[Setting, EndpointSettings]]:
    """All settings of a space that name an endpoint, each with its path: LLM judges, and policies served elsewhere."""
    of_judges = ((setting, judge) for setting, judge in judges(space) if isinstance(judge, EndpointSettings))
    return [*of_judges, *((("served", name), policy) for name, policy in space.served.items())]


def check_judges(space: Space, report: Report) -> None:
    """Every judge suits the space's data and evaluation, and every endpoint can be called."""
    trained = False
    for setting, judge in judges(space):
        trained = trained or judge.is_trained
        if judge.synthetic_only and not space.synthetic:
            report(
                setting,
                f"{judge.kind} judges only the synthetic world; use llm, reward_model or trained_reward_model",
            )
        if judge.is_imported and setting[-1] == "judge" and len(setting) == 3:
            report(
                setting,
                f"{judge.kind} cannot be tried on canned pairs; use it on a panel, or sacpo judge --import",
            )
        if isinstance(judge, TrainedJudge):
            _check_trained_judge(space, setting, judge, report)
        if judge.verdicts == "probabilities":
            _check_probabilities(setting, judge, report)
    for setting, owner in endpoints(space):
        _check_endpoint(setting, owner, report)
    if trained and space.data.judge_fraction == 0:
        report(
            ("data", "judge_fraction"),
            "is 0, but a trained judge needs prompts that no policy is trained on; give a fraction such as 0.3",
        )
    if not trained and space.data.judge_fraction > 0:
        report(("data", "judge_fraction"), "keeps prompts for trained judges, but this space has none; leave it out")


def _check_probabilities(setting: Setting, judge: JudgeSettings, report: Report) -> None:
    """Settings of single outcomes, which a judge that gives probabilities would ignore."""
    ignored = {"tie_margin": 0, "repeats": 1, "seed": 0} if isinstance(judge, NoisyJudge) else {"tie_margin": 0}
    for name, neutral in ignored.items():
        value = getattr(judge, name, neutral)
        if value != neutral:
            report((*setting, name), f"is {value:g}, which has no effect with verdicts: probabilities; leave it out")


def _check_trained_judge(space: Space, setting: Setting, judge: TrainedJudge, report: Report) -> None:
    source = space.data.preferences.get(judge.objective)
    if source is None:
        known = space.data.known_objectives(judge.objective)
        report((*setting, "objective"), f"unknown objective {judge.objective!r}; data.preferences has {known}")
    elif not isinstance(source, Files):
        report(setting, "learns from preference files, but the data is synthetic; use the gold judge")


def _check_endpoint(setting: Setting, owner: EndpointSettings, report: Report) -> None:
    url = owner.base_url
    if url is not None and not url.startswith(("http://", "https://")):
        report((*setting, "base_url"), f"{url!r} must begin with http:// or https:// (most URLs end in /v1)")
    elif url is not None and "@" in url:
        report((*setting, "base_url"), "holds a user name or a key; give keys through the environment (api_key_env)")
    prices = owner.calls.price_prompt, owner.calls.price_completion
    if owner.calls.max_spend is not None and (None in prices or not any(prices)):
        report(
            (*setting, "calls", "max_spend"),
            "needs prices above 0 to add up the cost; give calls.price_prompt and calls.price_completion",
        )
