"""`python -m sacpo.export RESULTS TRIAL OUT`: a policy as a plain Hugging Face folder with a model card."""

from __future__ import annotations

import argparse
import difflib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from sacpo.errors import SacpoError
from sacpo.planning.plan import Plan, Trial
from sacpo.results import tables
from sacpo.spaces.evaluation import CRITERIA
from sacpo.store.results_location import ResultsLocation
from sacpo.store.step_store import Store


def main(argv: list[str] | None = None) -> int:
    """The command. Exit status: 0 exported, 2 not possible."""
    parser = argparse.ArgumentParser(prog="python -m sacpo.export", description=__doc__)
    parser.add_argument("results", help="a results folder, a path or an s3:// URI")
    parser.add_argument("trial", help="a trial's id or label, as in trials.csv")
    parser.add_argument("out", type=Path, help="a folder that is new or empty")
    arguments = parser.parse_args(argv)
    try:
        export(ResultsLocation(arguments.results).fetch(), arguments.trial, arguments.out)
    except SacpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.out)
    return 0


def export(folder: Path, name: str, out: Path) -> None:
    """Copy a trial's verified policy to `out` and write its model card.

    Raises:
        SacpoError: no such results or trial, the policy is not there, or `out` holds something.
    """
    found = tables.load(folder)
    plan = tables.stored_plan(found.sweep)
    trial = _find(plan, name)
    if out.exists() and any(out.iterdir()):
        raise SacpoError(f"{out} is not empty; give a new folder")
    if not trial.policy:
        raise SacpoError(f"{trial.label} is a sentinel: it has answers, but no policy to export")
    sources = [Store(found.sweep["store"]).output(step) for step in trial.policy.values()]
    plain = shutil.ignore_patterns("history.json", *(["*.safetensors*"] if len(sources) == 2 else []))
    shutil.copytree(sources[0], out, dirs_exist_ok=True, ignore=plain)
    if len(sources) == 2 and trial.q is not None:
        _write_merge(sources, trial.q, out)
    row = found.trials.set_index("trial_id").loc[trial.trial_id]
    (out / "README.md").write_text(model_card(plan, trial, row, found.sweep), encoding="utf-8")


def _write_merge(parents: list[Path], q: float, out: Path) -> None:
    """The averaged weights, and what gives mergekit the same job (`mergekit-yaml mergekit.yaml OUT`)."""
    from sacpo.steps.merge import merged

    model = merged(parents[0], parents[1], q)
    model.save_pretrained(out)
    sources = [{"model": str(p), "parameters": {"weight": w}} for p, w in zip(parents, (1 - q, q), strict=True)]
    dtype = str(model.dtype).removeprefix("torch.")
    job = {"merge_method": "linear", "models": sources, "dtype": dtype}
    (out / "mergekit.yaml").write_text(json.dumps(job, indent=1) + "\n")  # JSON is YAML


def _find(plan: Plan, name: str) -> Trial:
    for trial in plan.trials:
        if name in (trial.trial_id, trial.label):
            return trial
    labels = [trial.label for trial in plan.trials]
    near = difflib.get_close_matches(name, labels, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise SacpoError(f"no trial {name!r} in this sweep{hint}\n  " + "\n  ".join(labels))


def model_card(plan: Plan, trial: Trial, row: Any, sweep: dict[str, Any]) -> str:
    """What the policy is, what made it, and how it was judged, as Markdown."""
    lines = ["---", "library_name: transformers", "tags: [sacpo, trl, alignment]", "---", "", f"# {trial.label}", ""]
    lines.append(
        f"Method `{trial.method}`, from the sweep `{plan.space.name}`, trial `{trial.trial_id}`, "
        f"made of {' and '.join(f'`{step}`' for step in trial.policy.values())}"
        + ("." if trial.q is None else f" with weights {1 - trial.q:g} and {trial.q:g}.")
    )
    lines += [
        "",
        "| criterion | win rate against the SFT policy | 95 % interval | verdicts | judge |",
        "|---|---|---|---|---|",
    ]
    for criterion in CRITERIA:
        judge = getattr(plan.space.evaluation, criterion).judge.kind
        accuracy = row.get(f"{criterion}_judge_accuracy")
        shown = f"{judge}, held-out accuracy {accuracy:.3f}" if accuracy is not None and accuracy == accuracy else judge
        low, high = row[f"{criterion}_low"], row[f"{criterion}_high"]
        lines.append(
            f"| {criterion} | {row[criterion]:.3f} | {low:.3f} to {high:.3f} | {row[f'n_{criterion}']} | {shown} |"
        )
    lines += ["", "The numbers hold for these judges and prompts only.", "", "## How it was made", ""]
    for step_id in dict.fromkeys(s for end in trial.policy.values() for s in plan.ancestors(end)):
        step = plan.steps[step_id]
        lines += [
            f"`{step.id}` {step.label}",
            "",
            "```json",
            json.dumps(step.payload, indent=1, sort_keys=True),
            "```",
            "",
        ]
    versions = ", ".join(f"{name} {version}" for name, version in sweep["versions"].items())
    lines += ["## With", "", f"{versions}; commit {sweep['git_commit'] or 'unknown'}", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
