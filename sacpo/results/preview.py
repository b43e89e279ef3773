"""The table `preview`: each criterion along lambda, estimated from answers that the policies of a chain gave."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sacpo.execution.artifacts import LIKELIHOODS, RESPONSES
from sacpo.planning.preview import Family, families
from sacpo.results.stored_outputs import StoredOutputs
from sacpo.results.win_rates import scored, verdict_scale
from sacpo.spaces.evaluation import CRITERIA
from sacpo.statistics.preview import REACH, ScoredAnswers, Trained, crossing, stones_between
from sacpo.statistics.win_rate import wilson
from sacpo.synthetic import world

_QUANTILE = 1.96  # of the standard normal distribution, for 95 %
_POINTS = np.linspace(0.0, 1.0, 41)
_GOLD = dict(zip(("expected_reward", "expected_safety"), (world.REWARD, world.SAFETY), strict=True))
_KEY = ["trial_id", "criterion", "prompt_id", "sample"]


@dataclass(frozen=True)
class LambdaEstimate:
    """Where a criterion reaches a threshold.

    Attributes:
        value: lambda; 0 if the policy before the last stage reaches it already, NaN if no policy of the path does.
        low, high: The lambdas whose 95 % bands contain the threshold. `high` is NaN if the band's lower bound does not
            reach it within the path; `low` is NaN if not even the upper bound does.
    """

    value: float
    low: float
    high: float


def expected_lambda(path: pd.DataFrame, criterion: str, at_least: float) -> LambdaEstimate:
    """The lambda at which a criterion is expected to reach a threshold.

    Args:
        path: The rows of one path of the table `preview`.
        criterion: Name of the criterion.
        at_least: The threshold b.
    """
    rows = path.sort_values("lambda")
    columns = (criterion, f"{criterion}_high", f"{criterion}_low")
    return LambdaEstimate(*(crossing(rows["lambda"], rows[column], at_least) for column in columns))


def preview_table(outputs: StoredOutputs, own: pd.DataFrame) -> pd.DataFrame:
    """One row for each path and lambda; a path of which a policy failed has none.

    Args:
        outputs: The records and outputs of the plan's steps.
        own: Verdicts of the criteria's own judges against the SFT policy.
    """
    scores = scored(own).groupby(_KEY, observed=True)["score"].mean()
    tables = [_path(family, outputs, scores) for family in families(outputs.plan.trials)]
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True).assign(verdicts=verdict_scale(own)) if tables else pd.DataFrame()


def _path(family: Family, outputs: StoredOutputs, scores: pd.Series[float]) -> pd.DataFrame:
    """The rows of one path."""
    answers = _answers(family, outputs)
    if answers is None:
        return pd.DataFrame()
    end = family.second
    beta, last = end.kl_parameters[0], end.kl_parameters[-1]
    table = pd.DataFrame(
        {
            "chain": end.chain,
            "beta": beta,
            "seed": end.seed,
            "first_id": family.first.trial_id,
            "second_id": end.trial_id,
            "policies": len(family.members),
            "q": _POINTS,
            "lambda": _POINTS * beta / last,
        }
    )
    samples = {}
    for criterion in outputs.plan.criteria:
        rows = answers[answers["criterion"] == criterion]
        rows = rows.assign(score=scores.reindex(pd.MultiIndex.from_frame(rows[_KEY])).to_numpy(dtype=float))
        rows = rows.dropna(subset="score")
        if outputs.plan.space.evaluation.racing:  # a policy that was stopped has verdicts on some prompts only
            rows = rows[rows.groupby("prompt_id")["source"].transform("nunique") == len(family.members)]
        samples[criterion] = rows
    if outputs.plan.space.synthetic:
        samples |= gold_samples(answers)
    if any(samples[criterion].empty for criterion in outputs.plan.criteria):
        return pd.DataFrame()
    estimates = {name: _scored_answers(family, rows) for name, rows in samples.items() if len(rows)}
    for name in samples:
        table = table.assign(**(_columns(name, family, estimates[name]) if name in estimates else _no_columns(name)))
    for name, exact in _exact(family, outputs):
        table[f"{name}_exact"] = exact
    criteria = [estimates[criterion] for criterion in outputs.plan.criteria]
    distance = max(nats for estimate in criteria for _, _, nats in estimate.distances())
    return table.assign(distance=distance, warning="; ".join(dict.fromkeys(_warnings(family, criteria))))


def gold_samples(answers: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The answers with their gold scores, for `expected_reward` and `expected_safety`.

    Only the synthetic world's own answers are in them, since a trial's exact expectations are over these.
    """
    distinct = answers.drop_duplicates(["step", "row"])
    gold = [world.gold_scores(*pair) for pair in distinct[["prompt", "response"]].itertuples(index=False)]
    samples = {}
    for name, scores in zip(_GOLD, zip(*gold, strict=True), strict=True):
        rows = distinct.assign(score=scores)
        samples[name] = rows[rows["score"] != world.GARBLED]
    return samples


def _answers(family: Family, outputs: StoredOutputs) -> pd.DataFrame | None:
    """Each answer of the family's policies with the log-probability that every policy gives it (columns 0, 1, ...).

    None unless every policy's step is done.
    """
    parts = []
    for source, member in enumerate(family.members):
        for criterion, step in member.generate.items():
            rows = outputs.table(step, RESPONSES)
            if rows.empty:
                return None
            rows = rows.assign(criterion=criterion, trial_id=member.trial_id, source=source)
            parts.append(rows.assign(step=step, row=range(len(rows))))
    answers = pd.concat(parts, ignore_index=True)
    keys = pd.MultiIndex.from_frame(answers[["step", "row"]])
    for number, member in enumerate(family.members):
        step_id = member.likelihoods.get(family.key)
        table = outputs.table(step_id, LIKELIHOODS) if step_id is not None else pd.DataFrame()
        if table.empty:
            return None
        answers[number] = table.set_index(["answers", "row"])["logp"].reindex(keys).to_numpy()
    return answers


def _scored_answers(family: Family, rows: pd.DataFrame) -> ScoredAnswers:
    return ScoredAnswers(
        logps=rows[list(range(len(family.members)))].to_numpy(dtype=float),
        source=rows["source"].to_numpy(),
        prompt=rows["prompt_id"].factorize()[0],
        score=rows["score"].to_numpy(dtype=float),
        trained=[Trained(number, family.position(trial)) for number, trial in enumerate(family.trained, start=2)],
    )


def _columns(name: str, family: Family, answers: ScoredAnswers) -> dict[str, Any]:
    curve = answers.curve(_POINTS)
    low, high = curve.low, curve.high
    if name not in _GOLD and np.ptp(answers.score) == 0:  # nothing to resample: Wilson's bounds, as for trials
        bounds = wilson(float(curve.value[0]), len(np.unique(answers.prompt)), _QUANTILE)
        low, high = (np.full(len(_POINTS), bound) for bound in bounds)
    ids = [member.trial_id for member in family.members]
    shares = [json.dumps(dict(zip(ids, row, strict=True))) for row in curve.shares.round(4).tolist()]
    columns = {name: curve.value, f"{name}_low": low, f"{name}_high": high}
    return columns | {f"{name}_effective": curve.effective, f"{name}_shares": shares}


def _no_columns(name: str) -> dict[str, Any]:
    """The columns of a gold value if no answer has it."""
    numbers = dict.fromkeys((name, f"{name}_low", f"{name}_high", f"{name}_effective"), float("nan"))
    return numbers | {f"{name}_shares": "{}"}


def _exact(family: Family, outputs: StoredOutputs) -> Iterator[tuple[str, world.Array]]:
    """Exact values along the path between the two ends in the synthetic world; win rates where the judge is `gold`."""
    steps = family.first.probabilities, family.second.probabilities
    ends = [outputs.probabilities(step) for step in steps if step is not None]
    sft = outputs.sft_probabilities
    if len(ends) < 2 or sft is None or ends[0] is None or ends[1] is None:
        return
    logs = np.log(np.stack([np.asarray(end) for end in ends]))
    path = np.exp(logs[0] + _POINTS[:, None, None] * (logs[1] - logs[0]))
    path /= path.sum(axis=2, keepdims=True)
    row_of = {text: number for number, (text, _) in enumerate(world.PROMPTS)}
    asked: set[int] = set()
    for values, criterion in zip(_GOLD.values(), CRITERIA, strict=True):
        rows = [row_of[prompt.text] for prompt in outputs.plan.prompts[criterion]]
        asked |= {*rows}
        if outputs.plan.space.evaluation.criteria[criterion].judge.kind == "gold":
            yield criterion, _expected(path, _win_rates(values, sft), rows)
    for gold, values in _GOLD.items():
        yield gold, _expected(path, values, sorted(asked))


def _expected(path: world.Array, values: world.Array, rows: Sequence[int]) -> world.Array:
    """Expectation at each point of the path, over these prompts: shapes (points, prompts, answers) to (points,)."""
    return np.asarray((path[:, rows] * values[rows]).sum(axis=2).mean(axis=1))


def _win_rates(values: world.Array, sft: world.Array) -> world.Array:
    """Each answer's win rate against the SFT policy's answers, ties half; shape (prompts, answers)."""
    probabilities = sft / sft.sum(axis=1, keepdims=True)
    outcome = (np.sign(values[:, :, None] - values[:, None, :]) + 1) / 2
    return np.asarray((outcome * probabilities[:, None, :]).sum(axis=2))


def _warnings(family: Family, criteria: Sequence[ScoredAnswers]) -> Iterator[str]:
    for answers in criteria:
        for first, second, nats in answers.distances():
            if (count := stones_between(nats)) > 0:
                a, b = (family.members[number].label for number in (first, second))
                yield (
                    f"{a} and {b} are {nats:.1f} nats apart, more than the {REACH:g} that answers of neighbours carry; "
                    f"{count} weight merge{'s' * (count > 1)} between them (preview.stones) would do"
                )
