"""`sacpo diff`: two sweeps beside each other, as text."""

from __future__ import annotations

from sacpo.planning.plan import Plan
from sacpo.reporting.formats import interval_text, number_text
from sacpo.results.kept_plan import plan_differences
from sacpo.results.sweep_difference import SweepDifference


def difference_text(compared: SweepDifference, plans: tuple[Plan, Plan]) -> str:
    """The settings that differ, then one line for each trial and criterion, then the trials of one sweep alone."""
    settings = list(plan_differences(*plans)) if plans[0].plan_id != plans[1].plan_id else []
    width = max((len(label) for label in compared.trials["label"]), default=5)
    lines = ["settings (first, then second):", *(f"  {line}" for line in settings or ["no difference"])]
    lines += [f"{'trial':{width}}  {'criterion':12}  first  second  second - first [95 %]      prompts"]
    for row in compared.trials.to_dict("records"):
        differs = "*" if row["low"] > 0 or row["high"] < 0 else ""
        difference = interval_text(row, "difference", "low", "high") or "no common prompt"
        rates = f"{number_text(row['first'])}  {number_text(row['second'])} "
        lines.append(
            f"{row['label']:{width}}  {row['criterion']:12}  {rates}  {difference:25}  {row['n_prompts']:5} {differs}"
        )
    lines += ["* the interval of the difference leaves 0 out; intervals are not adjusted for the number of trials"]
    for name, labels in (("first", compared.only_first), ("second", compared.only_second)):
        lines += [f"done in the {name} sweep only: {label}" for label in labels]
    return "\n".join([*lines, *(f"note: {note}" for note in compared.notes)])
