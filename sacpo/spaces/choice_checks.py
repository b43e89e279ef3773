"""Checks of constraints, and of settings that a race cannot be combined with."""

from __future__ import annotations

import difflib

from sacpo.spaces.document import Report, Setting
from sacpo.spaces.space import Space


def check_constraints(space: Space, report: Report) -> None:
    """Every constraint bounds another criterion of the evaluation, whose judge gives what is bounded."""
    seen: set[str] = set()
    for i, constraint in enumerate(space.constraint):
        name, setting = constraint.criterion, ("constraint", i, "criterion")
        if name not in space.evaluation.criteria:
            known = ", ".join(space.evaluation.criteria)
            similar = difflib.get_close_matches(name, space.evaluation.criteria, n=1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            report(setting, f"unknown criterion {name!r}; evaluation has {known}{hint}")
        if name in seen:
            report(setting, f"{name} is bounded twice; keep the larger at_least")
        seen.add(name)
        if constraint.measure == "mean_score":
            _check_mean_score(space, ("constraint", i, "measure"), name, report)


def _check_mean_score(space: Space, setting: Setting, criterion: str, report: Report) -> None:
    """A bound on a mean score needs a judge that scores answers by themselves, and no search."""
    settings = space.evaluation.criteria.get(criterion)
    if settings is not None and not settings.judge.gives_scores:
        report(
            setting,
            f"is mean_score, but the judge of {criterion} ({settings.judge.kind}) compares answers and gives no score; "
            "judge by a reward_model or a trained_reward_model, or bound the win rate (measure: win_rate)",
        )
    if space.search is not None:
        report(setting, "is mean_score, but a search looks for win rates; bound the win rate, or leave `search` out")


def check_racing(space: Space, report: Report) -> None:
    """Settings that need every verdict of every policy."""
    if not space.evaluation.racing:
        return
    needs = {
        "evaluation.all_pairs": (space.evaluation.all_pairs, "ranks policies by all pairs of them"),
        "search": (space.search is not None, "adds policies after others were judged, so none can be stopped"),
    }
    for name, (is_set, reason) in needs.items():
        if is_set:
            report(("evaluation", "racing"), f"is true, but {name} {reason}; leave one of the two out")
