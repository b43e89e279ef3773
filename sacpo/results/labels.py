"""Human labels: answers exported for labelling, labels read back, and judges' win rates corrected to the human scale.

An exported row shows a prompt and two answers without the policies' names, in an order that a hash of the row decides.
Its id is that hash too, so that a label finds its pair again in any results folder that has the answers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from sacpo.errors import DataError
from sacpo.judges.thoughts import without_thoughts
from sacpo.judges.verdicts import SCORES, outcome_of
from sacpo.results.judges_table import MAIN
from sacpo.results.win_rates import scored, verdict_scale
from sacpo.statistics.agreement import agreement
from sacpo.statistics.human import prediction_powered
from sacpo.statistics.win_rate import differences, win_rate

LABELS_FILE = "labels.parquet"
"""The labels in the results folder."""
SMALLEST_LABELS = 20
"""Fewest labelled prompts of a trial with which its win rate is corrected."""
_KEY = ["criterion", "trial_id", "prompt_id", "sample"]
_ITEM = ["criterion", "prompt_id", "sample"]
_COLUMNS = ["id", "criterion", "prompt", "answer_a", "answer_b", "label"]
_MEANING = {"a": "A", "b": "B", "tie": "tie"}


def label_sheet(trials: pd.DataFrame, responses: pd.DataFrame, count: int) -> pd.DataFrame:
    """Pairs of answers to label, balanced over policies, and within a policy over criteria and categories.

    Every category has its share of a policy's rows, so that the labelled prompts stay a random sample. Two equal
    answers are labelled a tie already. The choice and the order of answers are the same whenever it is repeated.

    Args:
        trials: The trial table; trials that are not done and sentinels are left out.
        responses: The answers.
        count: Number of rows; fewer if there are fewer pairs.
    """
    pairs = _pairs(trials, responses)
    cells = pairs.groupby(["trial_id", "criterion", "category"], dropna=False)["hash"]
    pairs["place"] = (cells.rank("first") - 0.5) / cells.transform("size")
    pairs = pairs.sort_values(["place", "hash"])
    pairs["turn"] = pairs.groupby("trial_id").cumcount()
    chosen = pairs.sort_values(["turn", "hash"]).head(count).sort_values("hash")
    chosen["label"] = chosen["answer_a"].eq(chosen["answer_b"]).map({True: "tie", False: ""})
    return chosen[_COLUMNS]


def read_labels(path: Path, trials: pd.DataFrame, responses: pd.DataFrame) -> pd.DataFrame:
    """Labels from an exported file: criterion, trial, prompt, sample, and the score of the policy's answer.

    Rows without a label are left out. Rows of one id, from several people, are averaged.

    Raises:
        DataError: the file cannot be read, lacks the columns `id` and `label`, has an id of another results folder or
            a label that is none, or has no label at all.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a CSV file: {error}") from None
    if missing := {"id", "label"} - set(table.columns):
        raise DataError(f"{path}: lacks the column {', '.join(sorted(missing))}; label a file of --export-for-labels")
    table["label"] = table["label"].str.strip().str.lower()
    table = table[table["label"] != ""]
    if table.empty:
        raise DataError(f"{path}: no row has a label; write A, B or tie into the column label")
    if wrong := sorted(set(table["label"]) - set(_MEANING)):
        raise DataError(f"{path}: labels must be A, B or tie, not {', '.join(map(repr, wrong[:5]))}")
    pairs = _pairs(trials, responses).set_index("id")
    if unknown := [row for row in table["id"] if row not in pairs.index]:
        raise DataError(
            f"{path}: {len(unknown)} ids, such as {unknown[0]}, are of no pair of answers in this results folder; give "
            "the results folder that the file was exported from"
        )
    rows = pairs.loc[table["id"], [*_KEY, "policy_is_a"]].assign(label=table["label"].to_numpy())
    won = rows["label"].eq("a") == rows["policy_is_a"]
    rows["score"] = won.astype(float).where(rows["label"] != "tie", SCORES["tie"])
    return rows.groupby(_KEY)["score"].mean().reset_index()


def human_tables(trials: pd.DataFrame, verdicts: pd.DataFrame, labels: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables `human` (one row for each criterion, judge and trial) and `human_judges` (for each judge)."""
    sft = trials.loc[trials["method"] == "sft", "trial_id"].iloc[0]
    counting = trials.loc[trials["status"] == "done", "trial_id"]
    against_sft = verdicts["baseline_id"].eq(sft) & verdicts["trial_id"].ne(sft) & verdicts["trial_id"].isin(counting)
    decided = scored(verdicts[against_sft])
    by_trial: list[dict[str, Any]] = []
    by_judge: list[dict[str, Any]] = []
    for (criterion, panel), group in decided.groupby(["criterion", "panel"]):
        judge = {"criterion": criterion, "judge": panel or MAIN, "verdicts": verdict_scale(group)}
        items = group.groupby([*_KEY])["score"].mean().rename("judge").reset_index()
        items = items.merge(labels.rename(columns={"score": "human"}), on=_KEY, how="left")
        labelled = items.dropna(subset="human")
        if labelled.empty:
            continue
        by_judge.append(judge | _agreement(labelled))
        by_trial += [judge | {"trial_id": trial} | _corrected(part) for trial, part in items.groupby("trial_id")]
    return {"human": pd.DataFrame(by_trial), "human_judges": pd.DataFrame(by_judge)}


def _agreement(labelled: pd.DataFrame) -> dict[str, Any]:
    """How often a judge agrees with the labels, and how much higher its scores are, over all policies."""
    prompts = labelled["prompt_id"].to_numpy()
    judged, human = (labelled[side].map(outcome_of).to_list() for side in ("judge", "human"))
    estimate = agreement(judged, human, prompts)
    means = labelled.groupby("prompt_id")[["judge", "human"]].mean().to_numpy()
    (bias,) = differences(means, [(0, 1)])
    return {
        "labels": estimate.n,
        "prompts": bias.n_prompts,
        "raw": estimate.raw,
        "kappa": estimate.kappa,
        "kappa_low": estimate.kappa_low,
        "kappa_high": estimate.kappa_high,
        "bias": bias.value,
        "bias_low": bias.low,
        "bias_high": bias.high,
    }


def _corrected(items: pd.DataFrame) -> dict[str, Any]:
    """A trial's win rate by the judge, by the labels alone, and by both."""
    labelled = items.dropna(subset="human")
    means = labelled.groupby("prompt_id")[["human", "judge"]].mean()
    others = items[~items["prompt_id"].isin(means.index)].groupby("prompt_id")["judge"].mean()
    columns = {"win_rate": win_rate(items["judge"].to_numpy(), items["prompt_id"].to_numpy()).value}
    if len(means) < SMALLEST_LABELS:
        nothing = dict.fromkeys(("corrected", "low", "high", "labels_only", "labels_low", "labels_high", "weight"))
        reason = f"{len(means)} labelled prompts; at least {SMALLEST_LABELS} are needed"
        return columns | {name: float("nan") for name in nothing} | {"labelled_prompts": len(means), "reason": reason}
    corrected = prediction_powered(means["human"].to_numpy(), means["judge"].to_numpy(), others.to_numpy())
    alone = win_rate(labelled["human"].to_numpy(), labelled["prompt_id"].to_numpy())
    return columns | {
        "corrected": corrected.rate.value,
        "low": corrected.rate.low,
        "high": corrected.rate.high,
        "labels_only": alone.value,
        "labels_low": alone.low,
        "labels_high": alone.high,
        "weight": corrected.weight,
        "labelled_prompts": len(means),
        "reason": "",
    }


def _pairs(trials: pd.DataFrame, responses: pd.DataFrame) -> pd.DataFrame:
    """Every pair of a policy's and the SFT policy's answer, with its id and the order in which it is shown."""
    sft = trials.loc[trials["method"] == "sft", "trial_id"].iloc[0]
    labelled_trials = trials.loc[trials["status"].eq("done") & ~trials["method"].isin(["sft", "sentinel"]), "trial_id"]
    responses = responses.dropna(subset=["response"])  # of served policies some can be missing
    ours = responses[responses["trial_id"].isin(labelled_trials)]
    theirs = responses.loc[responses["trial_id"] == sft, [*_ITEM, "response"]]
    pairs = ours.merge(theirs.rename(columns={"response": "baseline"}), on=_ITEM)
    keys = pairs[[*_KEY, "response", "baseline"]].astype(str).agg("\x1f".join, axis=1)
    pairs["hash"] = [hashlib.sha256(key.encode("utf-8", "replace")).hexdigest() for key in keys]
    pairs["id"] = pairs["hash"].str[:16]
    pairs["policy_is_a"] = [int(digest[-1], 16) % 2 == 0 for digest in pairs["hash"]]
    response, baseline = (pairs[side].map(without_thoughts) for side in ("response", "baseline"))
    pairs["answer_a"] = response.where(pairs["policy_is_a"], baseline)
    pairs["answer_b"] = baseline.where(pairs["policy_is_a"], response)
    return pairs
