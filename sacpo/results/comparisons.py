"""Tables that compare trials: differences, categories, length, seeds, panel, agreement of judges, ranking.

They are made when a sweep has ended, since each looks at the verdicts of all trials together.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from sacpo.judges.verdicts import outcome_of
from sacpo.planning.judge_payloads import JudgePayload
from sacpo.planning.plan import FOR_COMPARISON, Plan
from sacpo.results.coverage import coverage_problem
from sacpo.results.judges_table import MAIN
from sacpo.results.stopped import is_stopped
from sacpo.results.undecided import undecided_table
from sacpo.results.win_rates import (
    categories,
    criterion_columns,
    estimate_columns,
    no_rate,
    prompt_matrix,
    scored,
    verdict_scale,
)
from sacpo.spaces.evaluation import CRITERIA
from sacpo.statistics.agreement import agreement
from sacpo.statistics.bradley_terry import bradley_terry
from sacpo.statistics.length import length_controlled
from sacpo.statistics.pareto import on_front
from sacpo.statistics.variance import seed_estimate, variance_split
from sacpo.statistics.win_rate import NO_ESTIMATE, differences

_OWN = ""
"""Value of the verdicts' column `panel` for a criterion's own judge."""
_LENGTH = [
    "criterion",
    "trial_id",
    "mean_tokens",
    "baseline_mean_tokens",
    "length_controlled",
    "length_coefficient",
    "verdicts",
    "low",
    "high",
    "n_prompts",
    "reason",
]


def compare(
    plan: Plan, trials: pd.DataFrame, responses: pd.DataFrame, verdicts: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Every table by name; a table without content is empty.

    Args:
        plan: The plan.
        trials: The trial table; trials that are not done are left out.
        responses: The answers.
        verdicts: The verdicts.
    """
    done = set(trials.loc[trials["status"] == "done", "trial_id"])
    counting = verdicts[verdicts["trial_id"].isin(done) & verdicts["baseline_id"].isin(done)]
    decided = scored(counting)
    sft = plan.baseline.trial_id
    is_against_sft = counting["baseline_id"].eq(sft) & counting["trial_id"].ne(sft)
    against_sft = decided[decided["baseline_id"].eq(sft) & decided["trial_id"].ne(sft)]
    own = against_sft[against_sft["panel"] == _OWN]
    return {
        "differences": _differences(own),
        "categories": categories(own),
        "length": _length(own, responses, sft),
        "seeds": _seeds(own, trials),
        "undecided": undecided_table(counting[is_against_sft]),
        "panel": _panel(counting[is_against_sft], trials, plan),
        "agreement": _agreement(against_sft),
        "ranking": _ranking(plan, decided[decided["panel"] == _OWN]),
    }


def _differences(own: pd.DataFrame) -> pd.DataFrame:
    """One row for each criterion and pair of trials: difference of the win rates on the prompts that both answered."""
    rows = []
    for criterion, group in own.groupby("criterion"):
        matrix = prompt_matrix(group)
        pairs = list(itertools.combinations(range(matrix.shape[1]), 2))
        scale = verdict_scale(group)
        for (i, j), estimate in zip(pairs, differences(matrix.to_numpy(dtype=float), pairs), strict=True):
            first, second = matrix.columns[i], matrix.columns[j]
            bounds = (estimate.value, estimate.low, estimate.high, estimate.n_prompts)
            rows.append((criterion, first, second, *bounds, scale))
    names = ["criterion", "trial_id", "other_id", "difference", "low", "high", "n_prompts", "verdicts"]
    return pd.DataFrame(rows, columns=names)


def _length(own: pd.DataFrame, responses: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One row for each criterion and trial: its mean tokens, the baseline's, and the win rate at equal length."""
    rows = []
    keys = ["criterion", "prompt_id", "sample"]
    lengths = responses.set_index("trial_id")[[*keys, "tokens"]]
    if baseline not in lengths.index or own.empty:
        return pd.DataFrame(columns=_LENGTH)
    baseline_tokens = lengths.loc[[baseline]].set_index(keys)["tokens"]
    tokens = lengths.reset_index().set_index(["trial_id", *keys])["tokens"]
    verdicts = own.assign(
        tokens=tokens.reindex(pd.MultiIndex.from_frame(own[["trial_id", *keys]])).to_numpy(),
        baseline_tokens=baseline_tokens.reindex(pd.MultiIndex.from_frame(own[keys])).to_numpy(),
    ).dropna(subset=["tokens", "baseline_tokens"])  # an endpoint may count no tokens
    for criterion, group in verdicts.groupby("criterion"):
        difference = (group["tokens"] - group["baseline_tokens"]).to_numpy(dtype=float)
        scores, ids, prompts = (group[name].to_numpy() for name in ("score", "trial_id", "prompt_id"))
        controlled = length_controlled(scores, ids, prompts, difference)
        for trial, part in group.groupby("trial_id"):
            means = part["tokens"].mean(), part["baseline_tokens"].mean()
            rate = controlled.rates.get(str(trial), NO_ESTIMATE)
            bounds = (rate.low, rate.high, rate.n_prompts, controlled.reason)
            rows.append((criterion, trial, *means, rate.value, controlled.coefficient, verdict_scale(part), *bounds))
    return pd.DataFrame(rows, columns=_LENGTH)


def _seeds(own: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """One row for each criterion and setting with several training seeds: win rate over seeds, sources of variance."""
    same = [name for name in ("method", "chain", "kl_parameters", "q", "combination") if name in trials]
    groups = trials[trials["seed"].notna()].groupby(same, dropna=False)["trial_id"].agg(list)
    seed_of = trials.set_index("trial_id")["seed"]
    rows = []
    for settings, members in groups.items():
        assert isinstance(settings, tuple)
        for criterion in own["criterion"].unique():
            part = own[own["trial_id"].isin(members) & (own["criterion"] == criterion)]
            matrix = prompt_matrix(part).dropna()
            if matrix.shape[1] < 2 or matrix.empty:
                continue
            estimate = seed_estimate(matrix.to_numpy(dtype=float))
            cells = part.groupby(["prompt_id", "trial_id", "sample", "order"]).ngroup().to_numpy()
            split = variance_split(
                part["score"].to_numpy(), part["prompt_id"].to_numpy(), part["trial_id"].map(seed_of).to_numpy(), cells
            )
            rate = (estimate.value, estimate.low, estimate.high)
            rows.append((criterion, *settings, len(members), *rate, *vars(split).values(), verdict_scale(part)))
    names = ["criterion", *same, "seeds", "win_rate", "low", "high"]
    names += ["variance_prompts", "variance_seeds", "variance_repeats", "verdicts"]
    return pd.DataFrame(rows, columns=names)


def _panel(verdicts: pd.DataFrame, trials: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """One row for each judge of the panel and trial: win rates, and whether the trial is on the front, by that judge.

    The columns of a criterion are those of the trial table. A judge that decided too few verdicts of a trial has no win
    rate there: the row's status is `failed`, and its error says why. If a judge of the panel does not judge a
    criterion, the criterion's own judge does. Empty without a panel.

    Args:
        verdicts: The verdicts against the SFT policy, undecided ones included.
        trials: The trial table.
        plan: The plan.
    """
    smallest = plan.space.evaluation.min_coverage
    imported = {
        name
        for trial in plan.trials
        for name, _, step in trial.judge_steps()
        if isinstance(payload := plan.steps[step].payload, JudgePayload) and payload.judge.is_imported
    }
    names = sorted(set(verdicts["panel"]) - {_OWN})
    rows = []
    for name in [_OWN, *names] if names else []:
        by_trial: dict[Any, dict[str, Any]] = {trial: {} for trial in trials["trial_id"]}
        problems: dict[Any, list[str]] = {trial: [] for trial in trials["trial_id"]}
        for criterion, group in verdicts.groupby("criterion"):
            by_judge = group[group["panel"] == name]
            judged = by_judge if len(by_judge) else group[group["panel"] == _OWN]
            rates = estimate_columns(scored(judged))
            for trial, part in judged.groupby("trial_id"):
                columns = criterion_columns(str(criterion), part, rates.get(trial))
                judge = name if len(by_judge) else _OWN
                problem = coverage_problem(str(criterion), part, smallest, judge, judge in imported)
                by_trial[trial] |= columns | (no_rate(str(criterion)) if problem else {})
                problems[trial] += [problem] if problem else []
        rows += [
            {
                "panel": name or MAIN,
                "trial_id": trial,
                **columns,
                "status": "failed" if problems[trial] else "done",
                "error": "; ".join(problems[trial]),
            }
            for trial, columns in by_trial.items()
            if columns
        ]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    table = table.merge(trials[["trial_id", "label", "method"]], on="trial_id")
    table = table.reindex(columns=[*table.columns, *(c for c in CRITERIA if c not in table)])
    excluded = {*trials.loc[is_stopped(trials) | trials["method"].isin(FOR_COMPARISON), "trial_id"]}
    points = table[list(CRITERIA)].where(~table["trial_id"].isin(excluded))
    for _, positions in table.groupby("panel").groups.items():
        table.loc[positions, "on_front"] = on_front(points.loc[positions].to_numpy(dtype=float))
    return table


def _agreement(against_sft: pd.DataFrame) -> pd.DataFrame:
    """One row for each criterion and pair of judges: fraction of equal outcomes, and Cohen's kappa."""
    rows = []
    items = ["trial_id", "prompt_id", "sample"]
    for criterion, group in against_sft.groupby("criterion"):
        # Judges that score answers have no orders, so each judge's scores are averaged over orders and repeats.
        scores = group.groupby([*items, "panel"])["score"].mean().unstack("panel")
        outcomes = scores.apply(lambda column: column.map(outcome_of, na_action="ignore"))
        scales = {panel: verdict_scale(part) for panel, part in group.groupby("panel")}
        for first, second in itertools.combinations(sorted(scores.columns), 2):
            both = outcomes[[first, second]].dropna()
            if both.empty:
                continue
            prompts = both.index.get_level_values("prompt_id").to_numpy()
            estimate = agreement(both[first].to_list(), both[second].to_list(), prompts)
            both_scales = scales[first], scales[second]
            rows.append((criterion, first or MAIN, second, *vars(estimate).values(), *both_scales))
    names = ["criterion", "judge", "other_judge", "n", "raw", "kappa", "kappa_low", "kappa_high"]
    names += ["verdicts", "other_verdicts"]
    return pd.DataFrame(rows, columns=names)


def _ranking(plan: Plan, decided: pd.DataFrame) -> pd.DataFrame:
    """One row for each criterion and policy: Bradley-Terry strength over all pairs, 0 for SFT.

    Empty unless the space has all pairs judged.
    """
    if not plan.space.evaluation.all_pairs:
        return pd.DataFrame()
    rows: list[tuple[Any, ...]] = []
    for criterion, group in decided[decided["trial_id"] != decided["baseline_id"]].groupby("criterion"):
        judged = {*group["trial_id"], *group["baseline_id"]}
        ranked = [t.trial_id for t in plan.trials if t.method != "sentinel" and t.trial_id in judged]
        verdicts = group[group["trial_id"].isin(ranked)]
        prompt = verdicts["prompt_id"].factorize()[0]
        first, second = (
            pd.Categorical(verdicts[side], categories=ranked).codes for side in ("trial_id", "baseline_id")
        )
        wins = np.zeros((prompt.max() + 1, len(ranked), len(ranked)))
        np.add.at(wins, (prompt, first, second), verdicts["score"].to_numpy())
        np.add.at(wins, (prompt, second, first), 1 - verdicts["score"].to_numpy())
        strength, low, high = bradley_terry(wins, ranked.index(plan.baseline.trial_id))
        constant = itertools.repeat(verdict_scale(verdicts))
        rows += list(zip(itertools.repeat(criterion), ranked, strength, low, high, constant, strict=False))
    table = pd.DataFrame(rows, columns=["criterion", "trial_id", "strength", "low", "high", "verdicts"])
    return table.sort_values(["criterion", "strength"], ascending=[True, False], ignore_index=True)
