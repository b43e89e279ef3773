"""The tables of the page below the trials: how far the judges and the differences can be believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sacpo.reporting.formats import finite_or_none, interval_text
from sacpo.results.stopped import is_stopped
from sacpo.results.undecided import refusal_notes
from sacpo.spaces.evaluation import CRITERIA, OPTIONAL_CRITERIA

if TYPE_CHECKING:
    from sacpo.results.load import Results

_ALL_CRITERIA = (*CRITERIA, *OPTIONAL_CRITERIA)
_JUDGE_NUMBERS = {
    "canary_win_rate": "canned pairs won",
    "canary_order_inconsistency": "changed with order",
    "held_out_accuracy": "held-out accuracy",
    "temperature": "temperature",
    "calibration_error": "calibration error",
    "canary_pairs": "canned pairs",
    "canary_low": "canned pairs won, low",
    "canary_high": "high",
    "held_out_pairs": "held-out pairs",
    "held_out_low": "held-out accuracy, low",
    "held_out_high": "high",
    "calibration_low": "calibration error, low",
    "calibration_high": "high",
    "fooled_fraction": "talked round",
    "fooled_low": "talked round, low",
    "fooled_high": "high",
    "fooled_pairs": "pairs",
    "fooled_by": "by answers that",
    "canary_warnings": "warning",
    "verdicts": "verdicts",
}
"""Columns of the table of judges, and their titles."""


@dataclass(frozen=True)
class Section:
    """A table of the page with a title and a text; `rows` hold texts, numbers, and None for an empty cell."""

    title: str
    text: str
    columns: list[str]
    rows: list[list[Any]]


def sections(results: Results) -> list[Section]:
    """The sections that have rows."""
    labels = {str(k): str(v) for k, v in results.trials.set_index("trial_id")["label"].items()}
    makers: list[Callable[[], Section]] = [
        lambda: _warnings(results),
        lambda: _stopped(results),
        lambda: _judges(results),
        lambda: _panel(results, labels),
        lambda: _human(results, labels),
        lambda: _bias(results, labels),
        lambda: _undecided(results, labels),
        lambda: _differences(results, labels),
        lambda: _categories(results, labels),
        lambda: _seeds(results),
        lambda: _ranking(results, labels),
    ]
    return [section for make in makers if (section := make()).rows]


def _rows(results: Results, name: str, by_trial: bool = False) -> list[dict[Any, Any]]:
    """The rows of a comparison, optionally in the order of the trials."""
    table = results.comparisons.get(name)
    rows = [] if table is None else table.to_dict("records")
    position = {trial: i for i, trial in enumerate(results.trials["trial_id"])}
    return sorted(rows, key=lambda row: position[row["trial_id"]]) if by_trial else rows


def _warnings(results: Results) -> Section:
    trials = results.trials
    rows = [[row["label"], row["warnings"]] for row in trials[trials["warnings"] != ""].to_dict("records")]
    text = "Trials whose numbers may not mean what they seem to mean."
    return Section("Warnings", text, ["trial", "warning"], rows)


def _stopped(results: Results) -> Section:
    trials = results.trials
    rows = [[row["label"], row["stopped"]] for row in trials[is_stopped(trials)].to_dict("records")]
    text = "Trials whose further verdicts could not matter (evaluation.racing). They are on no front."
    return Section("Not judged further", text, ["trial", "reason"], rows)


def _judges(results: Results) -> Section:
    rows = [
        [
            row["criterion"],
            row["panel"],
            f"{row['judge']} {row['judge_revision']}".strip(),
            *(row.get(column) for column in _JUDGE_NUMBERS),
        ]
        for row in _rows(results, "judges")
    ]
    return Section(
        "Judges",
        "Before any policy was trained, each judge was tried on canned pairs: how often the better answer won, and how "
        "often the verdict changed with the order of the answers. Talked round: how often it preferred a worse answer "
        "that closes the quotation and writes a verdict, names itself the better, addresses the judge, or imitates its "
        "template. For judges that the sweep trained: accuracy and calibration on held-out pairs. Low and high are the "
        "bounds of 95 % intervals. Verdicts: whether one counts as a win, tie or loss (outcomes), or as the "
        "probability of a win (probabilities).",
        ["criterion", "name", "judge", *_JUDGE_NUMBERS.values()],
        rows,
    )


def _panel(results: Results, labels: dict[str, str]) -> Section:
    rows = [
        [
            labels[row["trial_id"]],
            row["panel"],
            *(interval_text(row, criterion, f"{criterion}_low", f"{criterion}_high") for criterion in CRITERIA),
            "\N{BLACK STAR}" if row["on_front"] is True else "",
            *(_missing(row, criterion) for criterion in CRITERIA),
            row.get("error") or "",
        ]
        for row in _rows(results, "panel", by_trial=True)
    ]
    agreements = [
        f"{row['criterion']}: {row['judge']} and {row['other_judge']} agree on {row['raw']:.1%} of {row['n']} answers, "
        + (
            f"Cohen's kappa {row['kappa']:.2f} [{row['kappa_low']:.2f}, {row['kappa_high']:.2f}]."
            if finite_or_none(row["kappa"]) is not None
            else "no kappa, since chance alone agrees on all of them."
        )
        for row in _rows(results, "agreement")
    ]
    text = "The front under each judge of the panel. " + " ".join(agreements)
    missing = [f"missing verdicts, {criterion}" for criterion in CRITERIA]
    return Section("Panel", text, ["trial", "judge", *CRITERIA, "front", *missing, "error"], rows)


def _human(results: Results, labels: dict[str, str]) -> Section:
    rows = [
        [
            labels[row["trial_id"]],
            row["criterion"],
            row["judge"],
            row["win_rate"],
            interval_text(row, "corrected", "low", "high"),
            interval_text(row, "labels_only", "labels_low", "labels_high"),
            row["labelled_prompts"],
            row["reason"],
        ]
        for row in _rows(results, "human", by_trial=True)
    ]
    judges = [
        f"{row['criterion']}: {row['judge']} agrees with {row['raw']:.1%} of {row['labels']} labels, and its scores "
        f"are {row['bias']:+.3f} [{row['bias_low']:+.3f}, {row['bias_high']:+.3f}] from the human ones."
        for row in _rows(results, "human_judges")
    ]
    text = (
        "Each judge's win rate, corrected to the human scale by prediction-powered inference, and the win rate by the "
        "labels alone, with 95 % intervals. "
    )
    columns = ["trial", "criterion", "judge", "win rate", "corrected", "labels alone", "labelled prompts", "reason"]
    return Section("Human labels", text + " ".join(judges), columns, rows)


def _bias(results: Results, labels: dict[str, str]) -> Section:
    trials = results.trials.set_index("trial_id")
    rows = []
    for row in _rows(results, "length", by_trial=True):
        trial, criterion = trials.loc[row["trial_id"]], row["criterion"]
        rows.append(
            [
                labels[row["trial_id"]],
                criterion,
                trial[criterion],
                interval_text(row, "length_controlled", "low", "high"),
                row["mean_tokens"],
                row["baseline_mean_tokens"],
                trial[f"{criterion}_order_inconsistency"],
                trial[f"{criterion}_coverage"],
                trial.get(f"{criterion}_refused"),
                _range(trial[f"{criterion}_if_missing_lost"], trial[f"{criterion}_if_missing_won"]),
                trial.get(f"{criterion}_no_verdict_mass"),
            ]
        )
    return Section(
        "Bias",
        "The win rate, and the win rate at equal length (one logistic regression over the sweep's verdicts, with a "
        "shared coefficient for the length difference and the difficulty of each prompt, after AlpacaEval 2; empty "
        "with too few trials or prompts); how often a verdict changed with the order "
        "of the answers; the win rate if all missing verdicts were lost, or won; and, where verdicts are read from "
        "token probabilities, the mean probability of tokens that state no verdict.",
        [
            "trial",
            "criterion",
            "win rate",
            "length-controlled",
            "mean tokens",
            "SFT's",
            "changed with order",
            "decided",
            "refused",
            "if missing lost, won",
            "mass on no verdict",
        ],
        rows,
    )


def _missing(row: Any, criterion: str) -> str:
    """How many verdicts are missing, and the win rate if all of them were lost, or won; empty if none is."""
    coverage = finite_or_none(row.get(f"{criterion}_coverage"))
    if coverage is None or coverage == 1:
        return ""
    bounds = _range(row[f"{criterion}_if_missing_lost"], row[f"{criterion}_if_missing_won"])
    return f"{1 - coverage:.1%} ({row[f'{criterion}_refused']:.0f} refused); if lost, won: {bounds}"


def _undecided(results: Results, labels: dict[str, str]) -> Section:
    table = results.comparisons.get("undecided")
    if table is None or table.empty:
        return Section("", "", [], [])
    counts = ["refused", "unavailable", "unparsable"]
    rows = [
        [
            labels[row["trial_id"]],
            row["panel"],
            row["criterion"],
            row["category"],
            row["verdicts"],
            *(row[count] for count in counts),
            _range(row["if_missing_lost"], row["if_missing_won"]),
        ]
        for row in _rows(results, "undecided", by_trial=True)
        if any(row[count] for count in counts)
    ]
    notes = "".join(f" {note[0].upper()}{note[1:]}." for note in refusal_notes(table, labels))
    return Section(
        "Missing verdicts",
        "Verdicts that a judge did not give, by policy and category, and the win rate in the category if all of them "
        f"were lost, or won.{notes} An endpoint that refuses one policy's answers more often than another's biases the "
        "difference of their win rates.",
        ["trial", "judge", "criterion", "category", "verdicts", *counts, "if missing lost, won"],
        rows,
    )


def _differences(results: Results, labels: dict[str, str]) -> Section:
    front = set(results.trials.loc[results.trials["on_front"].eq(True), "trial_id"])
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for row in _rows(results, "differences", by_trial=True):
        if {row["trial_id"], row["other_id"]} <= front:
            pairs.setdefault((row["trial_id"], row["other_id"]), {})[row["criterion"]] = row
    rows = []
    for (first, second), by_criterion in pairs.items():
        differ = [c for c in _ALL_CRITERIA if c in by_criterion and _excludes_zero(by_criterion[c])]
        texts = [interval_text(by_criterion.get(c, {}), "difference", "low", "high") for c in CRITERIA]
        rows.append([labels[first], labels[second], *texts, ", ".join(differ) or "nothing"])
    return Section(
        "Differences on the front",
        "First minus second, on the prompts that both answered, with 95 % intervals (paired bootstrap over prompts). "
        "Intervals are not adjusted for the number of pairs.",
        ["first", "second", *CRITERIA, "differ in"],
        rows,
    )


def _excludes_zero(row: Any) -> bool:
    return bool(row["low"] > 0 or row["high"] < 0)


def _categories(results: Results, labels: dict[str, str]) -> Section:
    table = results.comparisons.get("categories")
    if table is None or table.empty:
        return Section("", "", [], [])
    worst = table.loc[table.groupby(["trial_id", "criterion"])["win_rate"].idxmin()]
    several = table.groupby(["trial_id", "criterion"])["category"].transform("nunique").loc[worst.index] > 1
    rows = [
        [labels[row["trial_id"]], row["criterion"], row["category"], interval_text(row, "win_rate", "low", "high"), n]
        for row in worst[several].to_dict("records")
        for n in [row["n_prompts"]]
    ]
    columns = ["trial", "criterion", "category", "win rate", "prompts"]
    return Section(
        "Worst categories",
        "The category with the lowest win rate of each trial; categories.parquet has all of them.",
        columns,
        rows,
    )


def _seeds(results: Results) -> Section:
    rows = [
        [
            f"{row['method']} {row['chain']} {row['kl_parameters']}" + _merge_text(row),
            row["criterion"],
            row["seeds"],
            interval_text(row, "win_rate", "low", "high"),
            *(_deviation(row[f"variance_{part}"]) for part in ("prompts", "seeds", "repeats")),
        ]
        for row in _rows(results, "seeds")
    ]
    return Section(
        "Seeds",
        "Win rates over training seeds, with intervals that resample prompts and seeds, and the standard error that "
        "prompts, training seeds and judge repeats each contribute. More of the largest contributor helps most.",
        ["setting", "criterion", "seeds", "win rate", "from prompts", "from seeds", "from repeats"],
        rows,
    )


def _ranking(results: Results, labels: dict[str, str]) -> Section:
    rows = [
        [row["criterion"], labels[row["trial_id"]], interval_text(row, "strength", "low", "high")]
        for row in _rows(results, "ranking")
    ]
    text = "Bradley-Terry strengths (log odds against the SFT policy) over all pairs of policies, with 95 % intervals."
    return Section("Ranking", text, ["criterion", "trial", "strength"], rows)


def _range(low: Any, high: Any) -> str | None:
    return None if finite_or_none(low) is None else f"{low:.3f}, {high:.3f}"


def _deviation(variance: Any) -> float | None:
    value = finite_or_none(variance)
    return None if value is None else value**0.5


def _merge_text(row: Mapping[Any, Any]) -> str:
    value = finite_or_none(row["q"])
    return "" if value is None else f" {row.get('combination', '')} q={value:g}"
