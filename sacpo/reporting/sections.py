"""What the report says beside the front and the trials: how far the judges and the differences can be believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sacpo.reporting.plots import known

if TYPE_CHECKING:
    from sacpo.results.tables import Results

_SIDES = ("helpfulness", "harmlessness", "compliance")


@dataclass(frozen=True)
class Section:
    """A table of the page; `rows` hold texts and numbers, None where there is nothing to say."""

    title: str
    text: str
    columns: list[str]
    rows: list[list[Any]]


def sections(results: Results) -> list[Section]:
    """The sections that have something to say."""
    labels = {str(k): str(v) for k, v in results.trials.set_index("trial_id")["label"].items()}
    makers: list[Callable[[], Section]] = [
        lambda: _judges(results),
        lambda: _panel(results, labels),
        lambda: _bias(results, labels),
        lambda: _differences(results, labels),
        lambda: _categories(results, labels),
        lambda: _seeds(results),
        lambda: _ranking(results, labels),
    ]
    return [section for make in makers if (section := make()).rows]


def _table(results: Results, name: str, by_trial: bool = False) -> list[dict[Any, Any]]:
    """A table's rows, in the trials' order if wanted."""
    table = results.comparisons.get(name)
    rows = [] if table is None else table.to_dict("records")
    place = {trial: i for i, trial in enumerate(results.trials["trial_id"])}
    return sorted(rows, key=lambda row: place[row["trial_id"]]) if by_trial else rows


def _judges(results: Results) -> Section:
    rows = []
    steps = results.steps[results.steps["kind"] == "canary"]
    reward = results.steps[results.steps["kind"] == "train"]
    trained = {row["step_id"]: json.loads(row.get("metrics", "{}")) for row in reward.to_dict("records")}
    for step in steps.to_dict("records"):
        payload, found = json.loads(step["config"]), json.loads(step["metrics"])
        judge = payload["judge"]
        model = trained.get(json.loads(step["parents"]).get("model", ""), {})
        calibration = model.get("calibration", {})
        rows.append(
            [
                payload["criterion"],
                f"{judge['kind']} {judge.get('model', '')} {judge.get('revision') or ''}".strip(),
                found.get("canary_win_rate"),
                found.get("canary_order_inconsistency"),
                model.get("held_out_accuracy"),
                calibration.get("temperature"),
                calibration.get("error"),
            ]
        )
    return Section(
        "Judges",
        "Tried before any policy trained: how often the better answer of canned pairs won, and how often the verdict "
        "turned with the order. For judges that the sweep trained: accuracy and calibration on held-out pairs.",
        [
            *("criterion", "judge", "canned pairs won", "turned with order", "held-out accuracy"),
            *("temperature", "calibration error"),
        ],
        rows,
    )


def _panel(results: Results, labels: dict[str, str]) -> Section:
    rows = [
        [
            labels[row["trial_id"]],
            row["panel"],
            *(_interval(row, side, f"{side}_low", f"{side}_high") for side in _SIDES[:2]),
            "\N{BLACK STAR}" if row["on_front"] is True else "",
        ]
        for row in _table(results, "panel", by_trial=True)
    ]
    words = [
        f"{row['criterion']}: {row['judge']} and {row['other_judge']} agree on {row['raw']:.1%} of {row['n']} answers, "
        f"Cohen's kappa {row['kappa']:.2f} [{row['kappa_low']:.2f}, {row['kappa_high']:.2f}]."
        for row in _table(results, "agreement")
    ]
    text = "The front under each judge of the panel. " + " ".join(words)
    return Section("Panel", text, ["trial", "judge", *_SIDES[:2], "front"], rows)


def _bias(results: Results, labels: dict[str, str]) -> Section:
    trials = results.trials.set_index("trial_id")
    rows = []
    for row in _table(results, "length", by_trial=True):
        trial, side = trials.loc[row["trial_id"]], row["criterion"]
        rows.append(
            [
                labels[row["trial_id"]],
                side,
                trial[side],
                row["length_controlled"],
                row["mean_tokens"],
                row["baseline_mean_tokens"],
                trial[f"{side}_order_inconsistency"],
                trial[f"{side}_coverage"],
                _range(trial[f"{side}_if_missing_lost"], trial[f"{side}_if_missing_won"]),
            ]
        )
    return Section(
        "Bias",
        "The win rate beside the one at equal length (one logistic regression over the sweep's verdicts, with a shared "
        "coefficient for the length difference, after AlpacaEval 2), how often a verdict turned with the order of the "
        "answers, and what the win rate would be if all missing verdicts were lost, or won.",
        [
            *("trial", "criterion", "win rate", "length-controlled", "mean tokens", "SFT's", "turned with order"),
            *("decided", "if missing lost, won"),
        ],
        rows,
    )


def _differences(results: Results, labels: dict[str, str]) -> Section:
    front = set(results.trials.loc[results.trials["on_front"].eq(True), "trial_id"])
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in _table(results, "differences", by_trial=True):
        if {row["trial_id"], row["other_id"]} <= front:
            found.setdefault((row["trial_id"], row["other_id"]), {})[row["criterion"]] = row
    rows = []
    for (first, second), sides in found.items():
        told = [side for side in _SIDES if side in sides and (sides[side]["low"] > 0 or sides[side]["high"] < 0)]
        texts = [_interval(sides[side], "difference", "low", "high") if side in sides else None for side in _SIDES[:2]]
        rows.append([labels[first], labels[second], *texts, ", ".join(told) or "nothing"])
    return Section(
        "Differences on the front",
        "First minus second, on the prompts that both answered, with 95 % intervals (paired bootstrap over prompts). "
        "Intervals are not adjusted for the number of pairs.",
        ["first", "second", *_SIDES[:2], "told apart by"],
        rows,
    )


def _categories(results: Results, labels: dict[str, str]) -> Section:
    table = results.comparisons.get("categories")
    if table is None or table.empty:
        return Section("", "", [], [])
    worst = table.loc[table.groupby(["trial_id", "criterion"])["win_rate"].idxmin()]
    several = table.groupby(["trial_id", "criterion"])["category"].transform("nunique").loc[worst.index] > 1
    rows = [
        [labels[row["trial_id"]], row["criterion"], row["category"], _interval(row, "win_rate", "low", "high"), n]
        for row in worst[several].to_dict("records")
        for n in [row["n_prompts"]]
    ]
    columns = ["trial", "criterion", "category", "win rate", "prompts"]
    return Section("Worst categories", "Where each trial does worst; categories.parquet has them all.", columns, rows)


def _seeds(results: Results) -> Section:
    rows = [
        [
            f"{row['method']} {row['chain']} {row['kl_parameters']}" + _with_q(row["q"]),
            row["criterion"],
            row["seeds"],
            _interval(row, "win_rate", "low", "high"),
            *(_deviation(row[f"variance_{part}"]) for part in ("prompts", "seeds", "repeats")),
        ]
        for row in _table(results, "seeds")
    ]
    return Section(
        "Seeds",
        "Win rates over training seeds, with intervals that resample prompts and seeds, and the standard error that "
        "prompts, training seeds and judge repeats each bring: what is largest pays most to have more of.",
        ["setting", "criterion", "seeds", "win rate", "from prompts", "from seeds", "from repeats"],
        rows,
    )


def _ranking(results: Results, labels: dict[str, str]) -> Section:
    rows = [
        [row["criterion"], labels[row["trial_id"]], _interval(row, "strength", "low", "high")]
        for row in _table(results, "ranking")
    ]
    text = "Bradley-Terry strengths (log odds against the SFT policy) over all pairs of policies, with 95 % intervals."
    return Section("Ranking", text, ["criterion", "trial", "strength"], rows)


def _interval(row: Any, value: str, low: str, high: str) -> str | None:
    numbers = [number for name in (value, low, high) if (number := known(row.get(name))) is not None]
    return "{:.3f} [{:.3f}, {:.3f}]".format(*numbers) if len(numbers) == 3 else None


def _range(low: Any, high: Any) -> str | None:
    return None if known(low) is None else f"{low:.3f}, {high:.3f}"


def _deviation(variance: Any) -> float | None:
    value = known(variance)
    return None if value is None else value**0.5


def _with_q(q: Any) -> str:
    value = known(q)
    return "" if value is None else f" q={value:g}"
