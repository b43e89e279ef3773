"""Trials that a race has stopped: they were not judged on all prompts, so they are compared with no other trial."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from sacpo.planning.judge_payloads import JudgePayload
from sacpo.planning.metrics import JudgeMetrics
from sacpo.planning.plan import Trial
from sacpo.results.stored_outputs import StoredOutputs


def stopped_reason(trial: Trial, outputs: StoredOutputs) -> str:
    """Why and when a race stopped the trial; empty if it did not."""
    asked: dict[str, list[int]] = {}
    for criterion, first in trial.judge.items():
        for step in (first, *trial.rounds.get("", {}).get(criterion, ())):
            record, payload = outputs.record(step), outputs.plan.steps[step].payload
            if record is None or not isinstance(record.metrics, JudgeMetrics) or not isinstance(payload, JudgePayload):
                continue
            if payload.round is None:
                return ""
            prompts = outputs.plan.prompts[criterion]
            count = payload.round.count(prompts, len(prompts))
            numbers = asked.setdefault(criterion, [0, len(prompts), 0])
            is_asked = not record.metrics.not_asked
            numbers[0] += count * is_asked
            numbers[2] += count * (not is_asked)
    if not any(missing for _, _, missing in asked.values()):
        return ""
    goal = "be chosen under the constraint" if outputs.plan.space.constraint else "reach the front"
    judged = ", ".join(f"{done} of {total} {criterion} prompts" for criterion, (done, total, _) in asked.items())
    return f"could no longer {goal}; judged on {judged}"


def is_stopped(trials: pd.DataFrame) -> pd.Series[bool]:
    """Which trials a race has stopped; tables of older versions have none."""
    if "stopped" not in trials:
        return pd.Series(False, index=trials.index)
    return trials["stopped"].fillna("").ne("")


def stopped_lines(trials: pd.DataFrame) -> Iterator[str]:
    """One line for each trial that was stopped."""
    for row in trials[is_stopped(trials)].to_dict("records"):
        yield f"{row['label']}: {row['stopped']}"
