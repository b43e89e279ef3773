"""Tables and pictures of a study: a sweep with two orders of stages, merges, a preview and trained judges.

    python analysis/study.py WHOLE ENDS FOLDER

WHOLE is the results folder of the whole space, ENDS that of the sweep before it, of stage 1 and the most conservative
stage 2 alone, which has the preview. FOLDER gets CSV files, and made from them three pictures and tables.md.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd

from sacpo import results
from sacpo.reporting.curves import draw_curves
from sacpo.reporting.plots import plot_trials

CRITERIA = ("helpfulness", "harmlessness")


def collect(whole: Path, ends: Path, folder: Path) -> None:
    """Write the CSV files: numbers rounded to four digits, no prompt but those of the paper's helpfulness file."""
    sweep, before = results.load(whole), results.load(ends)
    trials = sweep.trials
    names = trials.set_index("trial_id")["label"]
    columns = ["label", "method", "chain", "beta", "beta_over_lambda", "lambda", "q", "seed", "status", "on_front"]
    columns += [f"{name}{end}" for name in CRITERIA for end in ("", "_low", "_high")]
    columns += [
        "kl_to_sft",
        "mean_response_tokens",
        "finished_fraction",
        "identical_to_parent",
        "constraint",
        "warnings",
    ]
    length = sweep.comparisons["length"].assign(label=lambda rows: rows["trial_id"].map(names))
    judges = ["criterion", "held_out_accuracy", "held_out_low", "held_out_high", "held_out_pairs", "calibration_error"]
    judges += ["canary_win_rate", "canary_low", "canary_high", "fooled_fraction", "fooled_low", "fooled_high"]
    preview = ["lambda", *(f"{name}{end}" for name in CRITERIA for end in ("", "_low", "_high")), "distance", "warning"]
    files = {
        "trials": trials[columns],
        "preview": before.comparisons["preview"][preview],
        "judges": sweep.comparisons["judges"][judges],
        "length": length[["criterion", "label", "mean_tokens", "length_controlled", "low", "high"]],
        "verdicts": _verdict_scales(sweep.verdicts.assign(label=lambda rows: rows["trial_id"].map(names))),
        "steps": _costs(sweep.steps),
        "curves": sweep.comparisons["curves"],
        "answers": _answers(sweep.responses.assign(label=lambda rows: rows["trial_id"].map(names))),
    }
    folder.mkdir(exist_ok=True)
    for name, table in files.items():
        table.round(4).to_csv(folder / f"{name}.csv", index=False)
    command = [sys.executable, "-m", "sacpo.choose", str(whole)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / "choice.txt").write_text(answer.stdout)


def _verdict_scales(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The win rate by outcomes and by probabilities, each with half the width of its 95 % interval over prompts."""
    by_prompt = verdicts.groupby(["criterion", "label", "prompt_id"], sort=False)[["score", "p_win"]].mean()
    groups = by_prompt.groupby(["criterion", "label"], sort=False)
    half_width = 1.96 * groups.std() / groups.count() ** 0.5
    table = groups.mean().join(half_width.add_suffix("_half_width"))
    return table.reset_index()


def _costs(steps: pd.DataFrame) -> pd.DataFrame:
    """Seconds, tokens and padding of each step. A train step's tokens are those of its texts in all epochs."""
    metrics = [json.loads(text or "{}") for text in steps["metrics"]]
    throughput = [metric.get("throughput") or {} for metric in metrics]
    return steps[["kind", "label", "seconds"]].assign(
        tokens=[part.get("tokens", metric.get("tokens")) for part, metric in zip(throughput, metrics, strict=True)],
        computing_seconds=[part.get("training_seconds") for part in throughput],
        padding=[part.get("padding_fraction") for part in throughput],
    )


def _answers(responses: pd.DataFrame) -> pd.DataFrame:
    """The first answers to twelve helpfulness prompts that have a category, evenly spaced: a column for each policy."""
    rows = responses[
        (responses["criterion"] == "helpfulness") & (responses["sample"] == 0) & (responses["category"] != "")
    ]
    table = rows.pivot(index="prompt", columns="label", values="response")
    table = table.loc[rows["prompt"].drop_duplicates(), rows["label"].drop_duplicates()]
    return table.iloc[:: max(1, len(table) // 12)].iloc[:12].reset_index()


def markdown(table: pd.DataFrame) -> str:
    """A table as lines of markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.astype(str).itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def intervals(table: pd.DataFrame, name: str, low: str, high: str) -> pd.Series:
    """A column with its intervals as text; empty where there is no number."""
    texts = [
        f"{value:.3f} ({at_least:.3f}-{at_most:.3f})"
        for value, at_least, at_most in table[[name, low, high]].itertuples(index=False)
    ]
    return pd.Series(texts, table.index).where(table[name].notna(), "")


def tables(folder: Path) -> dict[str, str]:
    """The tables by their headings, as markdown, from the CSV files of a folder."""
    read = {path.stem: pd.read_csv(path) for path in folder.glob("*.csv")}
    trials = read["trials"].set_index("label")
    line = _line(trials)
    named = line["method"] + " " + line["q"].map("q={:g}".format).replace("q=nan", "")
    ways = pd.concat([named, line["reached"].map("{:g}".format), _rates(line)], axis=1).set_axis(
        ["way", "λ", *CRITERIA], axis=1
    )
    policies = pd.concat([trials[trials["method"] == "sft"], line[line["q"].isna()]]).index
    shown = ["prompt", *(label for label in policies if label in read["answers"])]
    return {
        "Policies": markdown(_policies(trials)),
        "Judges": markdown(_judges(read["judges"])),
        "Preview": markdown(_preview(line[line["q"].isna()], read["preview"].set_index("lambda"))),
        "Ways to a λ": markdown(ways),
        "Counted in other ways": markdown(_checks(read["verdicts"].merge(read["length"], on=["criterion", "label"]))),
        "Choice": f"```\n{(folder / 'choice.txt').read_text().strip()}\n```",
        "Costs": markdown(_by_kind(read["steps"])),
        "Answers": markdown(read["answers"][shown].map(_one_line)),
    }


def _line(trials: pd.DataFrame) -> pd.DataFrame:
    """The policies of the first chain of two stages by the λ that they reach: trained, or q times the λ of a merge."""
    chain = trials.loc[trials["method"] == "sacpo", "chain"].iloc[0]
    line = trials[trials["chain"].isin([chain, chain.split(">")[0]])].copy()
    line["reached"] = line["lambda"].fillna(0.0) * line["q"].fillna(1.0)
    return line.sort_values("reached", kind="stable")


def _rates(trials: pd.DataFrame) -> pd.DataFrame:
    """Both win rates with their intervals, as text."""
    return pd.DataFrame({name: intervals(trials, name, f"{name}_low", f"{name}_high") for name in CRITERIA})


def _policies(trials: pd.DataFrame) -> pd.DataFrame:
    """What each policy reached."""
    return pd.DataFrame(
        {
            "policy": [f"`{label}`" for label in trials.index],
            "λ": trials["lambda"].map("{:g}".format).replace("nan", ""),
            **_rates(trials),
            "KL": trials["kl_to_sft"].map("{:.2f}".format).replace("nan", ""),
            "tokens": trials["mean_response_tokens"].map("{:.1f}".format),
            "ended": trials["finished_fraction"].map("{:.0%}".format),
            "front": trials["on_front"].map({True: "★", False: ""}),
        }
    )


def _preview(stages: pd.DataFrame, preview: pd.DataFrame) -> pd.DataFrame:
    """The preview at each λ that was trained, beside what training gave."""
    nearest = [int(abs(preview.index - value).argmin()) for value in stages["reached"]]
    foreseen, trained = _rates(preview.iloc[nearest]), _rates(stages)
    columns = {"λ": stages["reached"].map("{:g}".format).to_list()}
    for name in CRITERIA:
        columns |= {f"{name}, preview": foreseen[name].to_list(), f"{name}, trained": trained[name].to_list()}
    return pd.DataFrame(columns)


def _judges(judges: pd.DataFrame) -> pd.DataFrame:
    """What is known of the judges."""
    return pd.DataFrame(
        {
            "judge of": judges["criterion"],
            "held-out accuracy": intervals(judges, "held_out_accuracy", "held_out_low", "held_out_high"),
            "pairs": judges["held_out_pairs"].map("{:.0f}".format),
            "calibration error": judges["calibration_error"].map("{:.3f}".format),
            "better canned answer": intervals(judges, "canary_win_rate", "canary_low", "canary_high"),
            "talked round": intervals(judges, "fooled_fraction", "fooled_low", "fooled_high"),
        }
    )


def _checks(rows: pd.DataFrame) -> pd.DataFrame:
    """Win rates by outcomes, by probabilities, and at equal length."""
    columns = {"criterion": rows["criterion"], "policy": rows["label"].map("`{}`".format)}
    for name, column in (("outcomes", "score"), ("probabilities", "p_win")):
        half_width = rows[f"{column}_half_width"].map("{:.3f}".format)
        columns[name] = rows[column].map("{:.3f}".format) + " ± " + half_width
    columns["at equal length"] = intervals(rows, "length_controlled", "low", "high")
    return pd.DataFrame(columns)


def _one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " / ", str(text).strip()).replace("|", "¦")


def _by_kind(steps: pd.DataFrame) -> pd.DataFrame:
    """What each kind of step took: steps run, seconds, tokens a second, share of padding."""
    rows = []
    for kind, part in steps.groupby("kind", sort=False):
        seconds = part["computing_seconds"].fillna(part["seconds"])[part["tokens"].notna()].sum()
        speed = f"{part['tokens'].sum() / seconds:.0f}" if seconds else ""
        padding = "" if part["padding"].isna().all() else f"{part['padding'].mean():.1%}"
        rows.append([kind, str(len(part)), f"{part['seconds'].sum():.0f}", speed, padding])
    return pd.DataFrame(rows, columns=["kind", "steps", "seconds", "tokens a second", "padding"])


def draw(folder: Path) -> None:
    """Draw the front, the preview beside what was trained, and the curves of the stages."""
    from matplotlib.figure import Figure

    trials, preview = pd.read_csv(folder / "trials.csv"), pd.read_csv(folder / "preview.csv")
    trials["chain"] = trials["chain"].fillna("")
    front = Figure(figsize=(8.8, 7.2), dpi=125, layout="constrained")
    axes = front.subplots()
    plot_trials(trials, axes, legend=False)
    front.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    front.savefig(folder / "front.png")
    line = _line(trials)
    trained = line[line["q"].isna()]
    path = Figure(figsize=(8.8, 4.2), dpi=125, layout="constrained")
    for axes, name in zip(path.subplots(1, 2), CRITERIA, strict=True):
        axes.plot(preview["lambda"], preview[name], label="preview, from both ends alone")
        axes.fill_between(preview["lambda"], preview[f"{name}_low"], preview[f"{name}_high"], alpha=0.15)
        errors = (trained[name] - trained[f"{name}_low"], trained[f"{name}_high"] - trained[name])
        axes.errorbar(trained["reached"], trained[name], errors, fmt="o", capsize=3, label="trained")
        axes.axhline(0.5, color="grey", linewidth=0.8)
        axes.set(xlabel="λ", ylabel=f"{name}: win rate against the model")
        axes.legend(frameon=False)
    path.savefig(folder / "preview.png")
    draw_curves(pd.read_csv(folder / "curves.csv")).savefig(folder / "curves.png", dpi=100)


def main() -> None:
    """Collect, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("whole", "ends", "folder"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    options = parser.parse_args()
    collect(options.whole, options.ends, options.folder)
    draw(options.folder)
    text = "\n\n".join(f"## {heading}\n\n{table}" for heading, table in tables(options.folder).items())
    (options.folder / "tables.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
