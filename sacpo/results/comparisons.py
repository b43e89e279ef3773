"""Tables over a whole sweep's verdicts: differences between trials, categories, seeds, judges, ranking, length.

They are made once a sweep has ended (or its report is rebuilt), since they look at all trials together.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from sacpo.spaces.evaluation import CRITERIA
from sacpo.statistics.agreement import agreement
from sacpo.statistics.bradley_terry import bradley_terry
from sacpo.statistics.length import length_controlled
from sacpo.statistics.pareto import on_front
from sacpo.statistics.variance import seed_estimate, variance_split
from sacpo.statistics.win_rate import differences
from sacpo.planning.plan import Plan
from sacpo.results.win_rates import categories, estimate_columns, prompt_matrix, scored

MAIN = ""
"""The name of a criterion's own judge among the panel's."""


def compare(
    plan: Plan, trials: pd.DataFrame, responses: pd.DataFrame, verdicts: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Every table by its name; a table that has nothing to say is empty.

    Args:
        plan: The plan.
        trials: The trial table; trials that are not done are left out.
        responses: The answers.
        verdicts: The verdicts.
    """
    done = set(trials.loc[trials["status"] == "done", "trial_id"])
    decided = scored(verdicts[verdicts["trial_id"].isin(done) & verdicts["baseline_id"].isin(done)])
    sft = plan.baseline.trial_id
    against_sft = decided[decided["baseline_id"].eq(sft) & decided["trial_id"].ne(sft)]
    main = against_sft[against_sft["panel"] == MAIN]
    return {
        "differences": _differences(main),
        "categories": categories(main),
        "length": _length(main, responses, sft),
        "seeds": _seeds(main, trials),
        "panel": _panel(against_sft, trials),
        "agreement": _agreement(against_sft),
        "ranking": _ranking(plan, decided[decided["panel"] == MAIN]),
    }


def _differences(main: pd.DataFrame) -> pd.DataFrame:
    """One row a criterion and pair of trials: how much more the first wins, on the prompts that both answered."""
    rows = []
    for criterion, group in main.groupby("criterion"):
        matrix = prompt_matrix(group)
        pairs = list(itertools.combinations(range(matrix.shape[1]), 2))
        for (i, j), found in zip(pairs, differences(matrix.to_numpy(dtype=float), pairs), strict=True):
            first, second = matrix.columns[i], matrix.columns[j]
            rows.append((criterion, first, second, found.value, found.low, found.high, found.n_prompts))
    names = ["criterion", "trial_id", "other_id", "difference", "low", "high", "n_prompts"]
    return pd.DataFrame(rows, columns=names)


def _length(main: pd.DataFrame, responses: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One row a criterion and trial: mean tokens beside the baseline's, and the win rate at equal length."""
    rows = []
    keys = ["criterion", "prompt_id", "sample"]
    lengths = responses.set_index("trial_id")[[*keys, "tokens"]]
    sft = lengths.loc[[baseline]].set_index(keys)["tokens"] if baseline in lengths.index else None
    if sft is None or main.empty:
        return pd.DataFrame(columns=_LENGTH)
    ours = lengths.reset_index().set_index(["trial_id", *keys])["tokens"]
    wanted = main.assign(
        tokens=ours.reindex(pd.MultiIndex.from_frame(main[["trial_id", *keys]])).to_numpy(),
        baseline_tokens=sft.reindex(pd.MultiIndex.from_frame(main[keys])).to_numpy(),
    )
    for criterion, group in wanted.groupby("criterion"):
        shorter = (group["tokens"] - group["baseline_tokens"]).to_numpy(dtype=float)
        rates, coefficient = length_controlled(group["score"].to_numpy(), group["trial_id"].to_numpy(), shorter)
        for trial, part in group.groupby("trial_id"):
            means = part["tokens"].mean(), part["baseline_tokens"].mean()
            rows.append((criterion, trial, *means, rates[str(trial)], coefficient))
    return pd.DataFrame(rows, columns=_LENGTH)


_LENGTH = ["criterion", "trial_id", "mean_tokens", "baseline_mean_tokens", "length_controlled", "length_coefficient"]


def _seeds(main: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """One row a criterion and setting that was trained with several seeds: its win rate over seeds, where noise is."""
    same = ["method", "chain", "kl_parameters", "q"]
    groups = trials[trials["seed"].notna()].groupby(same, dropna=False)["trial_id"].agg(list)
    seed_of = trials.set_index("trial_id")["seed"]
    rows = []
    for settings, members in groups.items():
        assert isinstance(settings, tuple)
        for criterion in main["criterion"].unique():
            part = main[main["trial_id"].isin(members) & (main["criterion"] == criterion)]
            matrix = prompt_matrix(part).dropna()
            if matrix.shape[1] < 2 or matrix.empty:
                continue
            found = seed_estimate(matrix.to_numpy(dtype=float))
            cells = part.groupby(["prompt_id", "trial_id", "sample", "order"]).ngroup().to_numpy()
            split = variance_split(
                part["score"].to_numpy(), part["prompt_id"].to_numpy(), part["trial_id"].map(seed_of).to_numpy(), cells
            )
            rows.append((criterion, *settings, len(members), found.value, found.low, found.high, *vars(split).values()))
    names = ["criterion", *same, "seeds", "win_rate", "low", "high"]
    return pd.DataFrame(rows, columns=[*names, "variance_prompts", "variance_seeds", "variance_repeats"])


def _panel(against_sft: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """One row a judge of the panel and trial: win rates by that judge (by the criterion's own where the panel has none
    of that name), and whether the trial is on the front that this judge sees. Empty without a panel."""
    names = sorted(set(against_sft["panel"]) - {MAIN})
    rows = []
    for name in [MAIN, *names] if names else []:
        found: dict[Any, dict[str, Any]] = {trial: {} for trial in trials["trial_id"]}
        for criterion, group in against_sft.groupby("criterion"):
            mine = group[group["panel"] == name]
            for trial, estimate in estimate_columns(mine if len(mine) else group[group["panel"] == MAIN]).items():
                names_of = (str(criterion), f"{criterion}_low", f"{criterion}_high")
                found[trial] |= zip(names_of, (estimate.value, estimate.low, estimate.high), strict=True)
        rows += [{"panel": name or "main", "trial_id": trial, **values} for trial, values in found.items() if values]
    table = pd.DataFrame(rows)
    if table.empty:
        return table
    table = table.merge(trials[["trial_id", "label", "method"]], on="trial_id")
    table = table.reindex(columns=[*table.columns, *(c for c in CRITERIA if c not in table)])
    points = table[list(CRITERIA)].where(table["method"] != "sentinel")
    for _, rows_of in table.groupby("panel").groups.items():
        table.loc[rows_of, "on_front"] = on_front(points.loc[rows_of].to_numpy(dtype=float))
    return table


def _agreement(against_sft: pd.DataFrame) -> pd.DataFrame:
    """One row a criterion and pair of judges: how often they agree on a call's outcome, and Cohen's kappa."""
    rows = []
    items = ["trial_id", "prompt_id", "sample"]
    for criterion, group in against_sft.groupby("criterion"):
        # A judge's word on a pair of answers is its mean over orders and repeats: judges that score have no orders.
        words = group.groupby([*items, "panel"])["score"].mean().unstack("panel")
        outcomes = words.apply(lambda column: np.sign(column - 0.5)).replace({1.0: "win", 0.0: "tie", -1.0: "loss"})
        for first, second in itertools.combinations(sorted(words.columns), 2):
            both = outcomes[[first, second]].dropna()
            if both.empty:
                continue
            prompts = both.index.get_level_values("prompt_id").to_numpy()
            found = agreement(both[first].to_list(), both[second].to_list(), prompts)
            rows.append((criterion, first or "main", second, *vars(found).values()))
    names = ["criterion", "judge", "other_judge", "n", "raw", "kappa", "kappa_low", "kappa_high"]
    return pd.DataFrame(rows, columns=names)


def _ranking(plan: Plan, decided: pd.DataFrame) -> pd.DataFrame:
    """One row a criterion and trial: Bradley-Terry strength over all pairs, 0 for SFT. Empty unless all were judged."""
    if not plan.space.evaluation.all_pairs:
        return pd.DataFrame()
    rows: list[tuple[Any, ...]] = []
    for criterion, group in decided[decided["trial_id"] != decided["baseline_id"]].groupby("criterion"):
        known = {*group["trial_id"], *group["baseline_id"]}
        ranked = [t.trial_id for t in plan.trials if t.policy and t.trial_id in known]
        mine = group[group["trial_id"].isin(ranked)]
        prompt = mine["prompt_id"].factorize()[0]
        first, second = (pd.Categorical(mine[side], categories=ranked).codes for side in ("trial_id", "baseline_id"))
        wins = np.zeros((prompt.max() + 1, len(ranked), len(ranked)))
        np.add.at(wins, (prompt, first, second), mine["score"].to_numpy())
        np.add.at(wins, (prompt, second, first), 1 - mine["score"].to_numpy())
        strength, low, high = bradley_terry(wins, ranked.index(plan.baseline.trial_id))
        rows += list(zip(itertools.repeat(criterion), ranked, strength, low, high, strict=False))
    table = pd.DataFrame(rows, columns=["criterion", "trial_id", "strength", "low", "high"])
    return table.sort_values(["criterion", "strength"], ascending=[True, False], ignore_index=True)
