"""The `race` step: which policies can no longer reach the front, or be chosen, and are not judged further."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sacpo.execution.artifacts import RACE, RESPONSES, VERDICTS, read_stopped
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.judges.verdicts import SCORES, policy_score
from sacpo.planning.judge_payloads import RacePayload
from sacpo.planning.metrics import RaceMetrics
from sacpo.planning.prompt_parts import prompts_of_part
from sacpo.planning.racing import PREVIOUS, parse_role, prompts_role
from sacpo.spaces.constraints import objective_of
from sacpo.statistics.racing import Judged, choice_chances, front_chances, to_stop


def run(job: Job[RacePayload]) -> StepReport:
    """Write `race.json`: the policies that are stopped, each with its chance.

    A policy that is not stopped goes on, also if it is not compared: one of which a step failed or too few verdicts
    were decided. Such a policy stops no other.
    """
    stopped = read_stopped(job.parents[PREVIOUS]) if PREVIOUS in job.parents else {}
    verdicts = _verdicts(job)
    compared = [] if verdicts.empty else _compared(job, verdicts, stopped)
    chances = _chances(job, verdicts, compared) if compared else np.empty(0)
    out = dict(zip(compared, chances.tolist(), strict=True))
    is_out = to_stop(chances, job.payload.most_lost - sum(stopped.values()))
    new = {trial: out[trial] for trial, is_stopped in zip(compared, is_out, strict=True) if is_stopped}
    content = {"stopped": stopped | new, "chances": out}
    (job.folder / RACE).write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
    return StepReport(metrics=RaceMetrics(compared=len(compared), stopped=len(new)))


def _compared(job: Job[RacePayload], verdicts: pd.DataFrame, stopped: dict[str, float]) -> list[str]:
    """The trials that race on: all their steps succeeded, and enough of their verdicts are decided."""
    failed = {parsed.trial for role in job.step.parents.keys() - job.parents.keys() if (parsed := parse_role(role))}
    coverage = verdicts["score"].notna().groupby([verdicts["trial_id"], verdicts["criterion"]]).mean().unstack()
    is_covered = (coverage.reindex(columns=list(job.payload.criteria)) >= job.payload.min_coverage).all(axis=1)
    return sorted(set(coverage.index[is_covered]) - failed - stopped.keys())


def _chances(job: Job[RacePayload], verdicts: pd.DataFrame, trials: list[str]) -> NDArray[np.float64]:
    payload = job.payload
    own = verdicts[verdicts["trial_id"].isin(trials)]
    if not payload.constraints:
        first, second = (_judged(job, own, criterion, trials) for criterion in payload.criteria)
        return front_chances(first, second)
    objective = _judged(job, own, objective_of(payload.constraints), trials)
    constrained = [_judged(job, own, c.criterion, trials, c.measure) for c in payload.constraints]
    return choice_chances(objective, constrained, [c.at_least for c in payload.constraints])


def _judged(
    job: Job[RacePayload], verdicts: pd.DataFrame, criterion: str, trials: list[str], measure: str = "win_rate"
) -> Judged:
    """The means on the prompts asked so far. A prompt without a decided verdict gets the policy's mean."""
    answers = pd.read_parquet(job.parents[prompts_role(criterion)] / RESPONSES, columns=["prompt_id", "category"])
    categories = dict(zip(answers["prompt_id"].astype(str), answers["category"].fillna("").astype(str), strict=True))
    own = verdicts[verdicts["criterion"] == criterion]
    if measure == "mean_score":
        own = own.assign(score=own["raw"].map(policy_score).where(own["score"].notna()))
    means = own.pivot_table(index="prompt_id", columns="trial_id", values="score", aggfunc="mean")[trials]
    in_part = prompts_of_part(categories, job.payload.part)
    certifying = len(categories) - len(in_part)
    return Judged(means.fillna(means.mean()).to_numpy(dtype=float), len(in_part) - len(means), certifying)


def _verdicts(job: Job[RacePayload]) -> pd.DataFrame:
    """The verdicts of all rounds so far, with trial, criterion and score; the score is NaN if not decided."""
    parts = []
    for role, folder in job.parents.items():
        if (parsed := parse_role(role)) is not None:
            table = pd.read_parquet(folder / VERDICTS, columns=["prompt_id", "outcome", "score", "raw"])
            score = table["score"].astype(float).fillna(table["outcome"].map(SCORES).astype(float))
            parts.append(table.assign(trial_id=parsed.trial, criterion=parsed.criterion, score=score))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
