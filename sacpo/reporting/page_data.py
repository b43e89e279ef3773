"""The data of the page, as JSON for its script: points, choice, answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sacpo.reporting.formats import finite_or_none
from sacpo.reporting.series import (
    GOLD,
    INK,
    TITLES,
    WIN_RATES,
    all_series,
    drawn,
    front_points,
    interval_points,
    optima,
    point_label,
    preview_paths,
    prompt_counts,
    text_colour,
)
from sacpo.results.front import own_verdicts
from sacpo.results.win_rates import prompt_matrix, scored
from sacpo.spaces.constraints import Constraint, objective_of

if TYPE_CHECKING:
    from sacpo.results.load import Results

HOVER_COLUMNS = {
    "p_front": "P(on front)",
    "p_best": "P(best that satisfies)",
    "kl_to_sft": "KL to SFT",
    "mean_response_tokens": "mean tokens",
    "expected_reward": "E[r]",
    "expected_safety": "E[g]",
    "share_of_optimum": "share of optimum",
    "support_mass": "support mass",
    "seconds": "seconds",
}
_MOST_ANSWERS = 4_000_000  # characters of answers in the page
_DEFAULT = Constraint(criterion="harmlessness", at_least=0.5)
"""What the page starts with if the space has no constraint."""


def as_script(data: dict[str, Any]) -> str:
    """JSON text, in which no text of the tables can end the script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def empty_reason(trials: pd.DataFrame) -> str:
    """Why no trial is on the front; empty if one is."""
    if trials["on_front"].eq(True).any():
        return ""
    counts = trials["status"].value_counts()
    failed, pending = int(counts.get("failed", 0)), int(counts.get("pending", 0))
    if counts.get("done", 0) == 0:
        return f"The front is empty: no trial is done ({failed} failed, {pending} pending)."
    return (
        "The front is empty: no trial that is done has both win rates and was moved by its last stage "
        f"(sentinels are never on it; {failed} trials failed, {pending} are pending)."
    )


def page_data(results: Results) -> dict[str, Any]:
    """What the page's script draws: points, series, charts, the choice, prompts and answers."""
    trials = results.trials
    constraints = [Constraint(**c) for c in results.sweep.space.get("constraint", [])] or [_DEFAULT]
    bounds_rates = all(c.measure == "win_rate" for c in constraints)
    choice = _choice(results) if bounds_rates else []  # the page moves bounds of win rates alone
    prompts, answers = _answers(results)
    series = all_series(drawn(trials, WIN_RATES))
    looks = {str(trial): s for s in series for run in s.runs for trial in run["trial_id"]}
    return {
        "criteria": list(WIN_RATES),
        "hover": HOVER_COLUMNS,
        "trials": [_trial(row, looks.get(str(row["trial_id"]))) for row in trials.to_dict("records")],
        "series": [
            {
                "name": s.name,
                "colour": _colour(s.colour),
                "marker": s.marker,
                "runs": [list(run["trial_id"]) for run in s.runs],
            }
            for s in series
        ],
        "planes": _planes(results),
        "empty": empty_reason(trials) or "No trial has both numbers yet.",
        "constraints": [c.model_dump() for c in constraints if all(c.criterion in row for row in choice)],
        "objective": objective_of(constraints),
        "choice": choice,
        "baseline": _baseline(results),
        "prompts": prompts,
        "prompt_counts": {
            str(k): int(n) for k, n in results.responses.groupby("criterion")["prompt_id"].nunique().items()
        },
        "answers": answers,
    }


def _trial(row: dict[Any, Any], series: Any) -> dict[str, Any]:
    numbers = [*HOVER_COLUMNS, *(f"{name}{end}" for name in WIN_RATES for end in ("", "_low", "_high"))]
    numbers += [*GOLD, *(f"n_{name}" for name in WIN_RATES)]
    return {
        "id": str(row["trial_id"]),
        "label": str(row["label"]),
        "short": point_label(row),
        "sentinel": row["method"] == "sentinel",
        "on_front": row["on_front"] is True,
        "constraint": str(row.get("constraint", "")),
        "series": "" if series is None else series.name,
        "marker": "" if series is None else series.marker,
        "colour": "" if series is None else _colour(series.colour),
        "text_colour": "" if series is None else _colour(series.colour, is_text=True),
        **{name: finite_or_none(row.get(name)) if row["status"] == "done" else None for name in numbers},
    }


def _colour(colour: str, is_text: bool = False) -> str:
    """The colour in the page, where ink is the colour of text: light in dark mode."""
    if colour == INK:
        return "currentColor"
    return text_colour(colour) if is_text else colour


def _planes(results: Results) -> list[dict[str, Any]]:
    """The charts: axes and their titles, the front's steps, its band, and curves of exact optima."""
    trials, band = results.trials, results.comparisons.get("front")
    edges = [] if band is None or band.empty else band[[WIN_RATES[0], "low", "high"]].to_numpy(dtype=float).tolist()
    prompts = prompt_counts(results.verdicts)
    rates = {
        "id": "rates",
        "title": "win rates",
        "axes": list(WIN_RATES),
        "titles": [
            f"{TITLES[name]}" + (f" ({prompts[name]} prompts)" if name in prompts else "") for name in WIN_RATES
        ],
        "front": front_points(trials),
        "band": edges,
        "curves": _previews(results, WIN_RATES),
    }
    if results.exact is None:
        return [rates]
    marks = [[mark[GOLD[0]], mark[GOLD[1]], f"λ={mark['lambda']:.3g}"] for mark in optima(trials, results.exact)]
    curves = [
        {
            "name": f"exact optimum, β={beta:g}",
            "points": [[float(x), float(y), ""] for x, y in grid[list(GOLD)].to_numpy()],
            "look": "curve",
            "dash": ("", "8 4", "8 3 2 3", "2 3")[number % 4],
        }
        for number, (beta, grid) in enumerate(results.exact.sort_values("lambda").groupby("beta"))
    ]
    curves += _previews(results, GOLD)
    curves += [{"name": "optimum at a trial's λ", "points": marks, "look": "cross", "dash": ""}] if marks else []
    gold = {"id": "gold", "title": "exact expectations", "axes": list(GOLD), "titles": [TITLES[name] for name in GOLD]}
    return [rates, gold | {"front": [], "band": [], "curves": curves}]


def _previews(results: Results, plane: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "points": [[x, y, ""] for x, y in line],
            "bars": [[line[i], low[i], high[i]] for i in interval_points(len(line))],
            "look": "preview",
            "dash": ("7 3", "2 2.5", "10 3 2 3")[number % 3],
        }
        for number, (name, line, low, high) in enumerate(preview_paths(results.comparisons.get("preview"), plane))
    ]


def _choice(results: Results) -> list[dict[str, Any]]:
    """The policies that can be chosen, with both parts' win rates and the lower bound by criterion."""
    table = results.comparisons.get("choice")
    if table is None or table.empty:
        return []
    labels = results.trials.set_index("trial_id")["label"]
    position = {trial: i for i, trial in enumerate(results.trials["trial_id"])}
    rows = []
    for trial, group in table.groupby("trial_id"):  # in the order of the ids, as the command compares them
        by_criterion = {
            str(row["criterion"]): {
                "choosing": finite_or_none(row["choosing"]),
                "certifying": finite_or_none(row["certifying"]),
                "n": int(row["n_certifying"]),
                "low": float(row["lower_bound"]),
            }
            for row in group.to_dict("records")
        }
        rows.append({"id": str(trial), "label": str(labels[trial]), "position": position[str(trial)], **by_criterion})
    return rows


def _answers(results: Results) -> tuple[dict[str, list[dict[str, str]]], dict[str, dict[str, list[Any]]]]:
    """The first answer of each policy to each prompt, as many prompts as the page holds.

    Prompts on which the policies' mean scores differ most come first.

    Returns:
        The prompts of each criterion, and trial id to criterion to the answers in the order of the prompts.
    """
    responses, verdicts = results.responses, results.verdicts
    first = responses.dropna(subset=["response"]).drop_duplicates(["trial_id", "criterion", "prompt_id"])
    if first.empty:
        return {}, {}
    judged = own_verdicts(verdicts, _baseline(results))
    budget = _MOST_ANSWERS // first["criterion"].nunique()
    prompts: dict[str, list[dict[str, str]]] = {}
    answers: dict[str, dict[str, list[Any]]] = {}
    for criterion, group in first.groupby("criterion"):
        own = judged[judged["criterion"] == criterion]
        means = prompt_matrix(scored(own)) if len(own) else pd.DataFrame()
        lengths = group.assign(length=group["response"].str.len()).groupby("prompt_id", sort=False)["length"].sum()
        spread = means.std(axis=1).reindex(lengths.index).fillna(0.0) if len(means) else 0.0 * lengths
        ordered = lengths[spread.sort_values(ascending=False, kind="stable").index]
        kept = [str(prompt) for prompt in ordered.index[(ordered.cumsum() <= budget) | (np.arange(len(ordered)) == 0)]]
        facts = {str(row["prompt_id"]): row for row in group.drop_duplicates("prompt_id").to_dict("records")}
        prompts[str(criterion)] = [
            {"text": str(facts[prompt]["prompt"]), "category": str(facts[prompt]["category"] or "")} for prompt in kept
        ]
        scores: dict[Any, dict[Any, float]] = means.to_dict()
        outcomes = _outcomes(own)
        for trial, rows in group.groupby("trial_id"):
            of_prompt = {str(row["prompt_id"]): row for row in rows.to_dict("records")}
            answers.setdefault(str(trial), {})[str(criterion)] = [
                None if row is None else _answer(row, scores, outcomes) for row in map(of_prompt.get, kept)
            ]
    return prompts, answers


def _answer(
    row: dict[Any, Any], scores: dict[Any, dict[Any, float]], outcomes: dict[tuple[Any, ...], list[str]]
) -> dict[str, Any]:
    trial, prompt = row["trial_id"], row["prompt_id"]
    return {
        "text": str(row["response"]),
        "finished": bool(row["finished"]),
        "judge_directed": row.get("judge_directed") is True,
        "score": finite_or_none(scores.get(trial, {}).get(prompt)),
        "verdicts": outcomes.get((trial, prompt, row["sample"]), []),
    }


def _outcomes(verdicts: pd.DataFrame) -> dict[tuple[Any, ...], list[str]]:
    """Outcomes of the criterion's own judge by trial, prompt and sample: those of one answer stand together."""
    outcomes: dict[tuple[Any, ...], list[str]] = {}
    for row in verdicts.to_dict("records"):
        outcomes.setdefault((row["trial_id"], row["prompt_id"], row["sample"]), []).append(str(row["outcome"]))
    return outcomes


def _baseline(results: Results) -> str:
    baseline = results.trials.loc[results.trials["method"] == "sft", "trial_id"]
    return str(baseline.iloc[0]) if len(baseline) else ""
