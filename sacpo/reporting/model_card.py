"""The model card of an exported policy. It holds no path of the machine that made the policy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sacpo.planning.graph import base_of
from sacpo.planning.metrics import ModelMetrics
from sacpo.planning.payloads import hashed
from sacpo.planning.plan import MIXED_ROLES, Plan, Trial
from sacpo.reporting.choice_text import RULE, certificate_lines
from sacpo.reporting.formats import interval_text, number_text
from sacpo.results.choice import Choice
from sacpo.results.sweep_facts import SweepFacts


def model_card(
    plan: Plan,
    trial: Trial,
    row: Mapping[Any, Any],
    facts: SweepFacts,
    choice: Choice | None = None,
    as_adapter: bool = False,
    origin: ModelMetrics | None = None,
) -> str:
    """Origin of a policy, its settings, and its win rates with their judges, as Markdown.

    Args:
        plan: The plan of the sweep.
        trial: The trial of the policy.
        row: The trial's row of the trial table.
        facts: The facts of the sweep.
        choice: The choice whose certificate the card carries; None without a constraint.
        as_adapter: The folder has an adapter, not all weights.
        origin: What the `model` step recorded, whose licence and base model the card carries.
    """
    sections = [
        _origin(plan, trial),
        _win_rates(plan, row),
        *_certificate(trial, choice),
        *_adapter(plan, trial, as_adapter),
        *([] if as_adapter else _merge(plan, trial)),
        _steps(plan, trial),
        _versions(facts),
    ]
    names = {} if origin is None else {"license": origin.license, "base_model": origin.base_model}
    known = [f"{key}: {json.dumps(value)}" for key, value in names.items() if value is not None]  # JSON is YAML
    library = "peft" if as_adapter else "transformers"
    front_matter = ["---", f"library_name: {library}", "tags: [sacpo, trl, alignment]", *known]
    front_matter += ["---", "", f"# {trial.label}"]
    return "\n\n".join(["\n".join(front_matter), *sections]) + "\n"


def _origin(plan: Plan, trial: Trial) -> str:
    steps = " and ".join(f"`{step}`" for step in trial.policy.values())
    how = f", merged by `{trial.combination.text}`" if trial.is_merge else ""
    weights = "" if trial.q is None else f"{how} with weights {1 - trial.q:g} and {trial.q:g}"
    sweep = f"from the sweep `{plan.space.name}`, trial `{trial.trial_id}`"
    return f"Method `{trial.method}`, {sweep}, made of {steps}{weights}."


def _win_rates(plan: Plan, row: Mapping[Any, Any]) -> str:
    lines = [
        "| criterion | win rate against the SFT policy | 95 % interval | verdicts | judge |",
        "|---|---|---|---|---|",
    ]
    for criterion, settings in plan.space.evaluation.criteria.items():
        judge: str = settings.judge.kind
        accuracy = interval_text(row, *(f"{criterion}_judge_accuracy{end}" for end in ("", "_low", "_high")))
        if accuracy is not None:
            judge += f", held-out accuracy {accuracy} from {row[f'{criterion}_judge_pairs']:.0f} pairs"
        rate, low, high = (number_text(row[f"{criterion}{end}"]) for end in ("", "_low", "_high"))
        lines.append(f"| {criterion} | {rate} | {low} to {high} | {row[f'n_{criterion}']} | {judge} |")
    return "\n".join([*lines, "", "The numbers hold for these judges and prompts only."])


def _certificate(trial: Trial, choice: Choice | None) -> list[str]:
    """What the policy is certified to satisfy; nothing without a constraint, or for a policy that is no candidate."""
    if choice is None or trial.trial_id not in set(choice.table["trial_id"]):
        return []
    lines = [f"- {line}" for line in certificate_lines(choice, trial.trial_id)]
    return ["\n".join(["## Certificate", "", *lines, "", f"Rule: {RULE}."])]


def _adapter(plan: Plan, trial: Trial, as_adapter: bool) -> list[str]:
    """How an adapter was merged, or how to load it; nothing for a policy that was not trained with LoRA."""
    bases = {base_of(plan.steps, step) for step in trial.policy.values()}
    if bases == set(trial.policy.values()):
        return []
    loading = plan.space.model.loading
    lines = ["## Adapter", ""]
    if not as_adapter:
        lines.append("Trained with LoRA; the adapter is merged: added to the base's weights in float32, rounded once.")
        if loading.quantization is not None:
            lines.append(
                f"It was trained and judged on {loading.quantization} weights; here the base has its own number "
                "format, so answers differ slightly."
            )
        return ["\n".join(lines)]
    (base,) = bases
    label = next((t.label for t in plan.trials if list(t.policy.values()) == [base]), None)
    if label is not None:
        lines += [f'The base is a policy of the sweep: `sacpo export RESULTS "{label}" BASE`.', ""]
    else:
        lines += ["The base is the pretrained model of the sweep, whose identity the first step below has.", ""]
    load = "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), OUT)"
    return ["\n".join([*lines, f"Load it with peft: `{load}`."])]


def _merge(plan: Plan, trial: Trial) -> list[str]:
    """How to get the parents that `mergekit.yaml` names by their roles; nothing for a policy that is no merge."""
    if trial.q is None:
        return []
    if MIXED_ROLES[0] in trial.policy:
        return [
            "## How it answers\n\nThe policies in `first` and `second` answer together: the probability of each token "
            f'is proportional to p1^{1 - trial.q:g} x p2^{trial.q:g} (`logit_mix.json`). `python generate.py "PROMPT"` '
            "prints an answer; it needs torch and transformers."
        ]
    labels = {tuple(t.policy.values()): t.label for t in plan.trials}
    lines = ["## The same merge with mergekit", ""]
    lines += [f"`mergekit-yaml mergekit.yaml OUT` merges the weights of {len(trial.policy)} folders beside it:", ""]
    for role, step_id in trial.policy.items():
        label = labels.get((step_id,))
        command = f'`sacpo export RESULTS "{label}" {role}`'
        lines.append(f"- `{role}`: {f'output of step `{step_id}` in the store' if label is None else command}")
    if trial.combination.draws:
        lines += [
            "",
            "mergekit draws the kept entries by a seed of its own, so its weights differ from these.",
        ]
    return ["\n".join(lines)]


def _steps(plan: Plan, trial: Trial) -> str:
    lines = ["## Steps", "", "Settings that are not listed have their defaults."]
    for step_id in dict.fromkeys(step for end in trial.policy.values() for step in plan.ancestors(end)):
        step = plan.steps[step_id]
        settings = json.dumps(hashed(step.payload), indent=1, sort_keys=True)
        lines += ["", f"`{step.id}` {step.label}", "", "```json", settings, "```"]
    return "\n".join(lines)


def _versions(facts: SweepFacts) -> str:
    if not facts.runs:
        return "## Versions\n\nUnknown: all steps were carried out by other sweeps of the same store."
    run = facts.runs[-1]
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return f"## Versions\n\n{versions}; commit {run.git_commit or 'unknown'}"
