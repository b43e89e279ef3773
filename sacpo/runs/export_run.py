"""Exports the policy of a trial as a plain Hugging Face folder with a model card."""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from sacpo.errors import SacpoError, StoreError
from sacpo.planning.plan import Plan, Trial
from sacpo.reporting.model_card import model_card
from sacpo.results.kept_plan import read_kept_plan
from sacpo.results.load import load_folder
from sacpo.runs.choose_run import certificate_of
from sacpo.runs.report_run import missing_steps, open_store
from sacpo.spaces.constraints import Constraint
from sacpo.store.results_location import ResultsLocation

MERGE_FILE = "mergekit.yaml"


def export_policy(location: ResultsLocation, name: str, out: Path, constraints: Sequence[Constraint] = ()) -> None:
    """Copy a trial's policy to a folder and write its model card. Each file is verified against its digest first.

    Args:
        location: The results folder.
        name: The trial's id or label.
        out: A folder that is new or empty.
        constraints: What the model card certifies, if the policy qualifies; the space's constraints if there are none.

    Raises:
        SacpoError: there are no such results or no such trial, the trial has no policy, or `out` is not empty.
        StoreError: the store lacks the policy.
    """
    folder = location.fetch()
    results, plan = load_folder(folder), read_kept_plan(folder)
    trial = _find_trial(plan, name)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SacpoError(f"{out} is not empty; give a new folder")
    if not trial.policy:
        raise SacpoError(f"{trial.label} is a sentinel: it has answers, but no policy to export")
    choice = certificate_of(results, constraints)
    store = open_store(location, results.sweep)
    if missing := missing_steps(plan, store, list(trial.policy.values())):
        raise StoreError(f"the store {store.uri} lacks {', '.join(missing)}; run the sweep's own command again")
    sources = [store.verified_output_dir(step) for step in trial.policy.values()]
    weights = ["*.safetensors*"] if trial.q is not None else []
    shutil.copytree(sources[0], out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("history.json", *weights))
    if trial.q is not None:
        _write_merge(sources, trial, trial.q, out)
    row = results.trials.set_index("trial_id").loc[trial.trial_id].to_dict()
    (out / "README.md").write_text(model_card(plan, trial, row, results.sweep, choice), encoding="utf-8")


def _write_merge(parents: list[Path], trial: Trial, q: float, out: Path) -> None:
    """Write the averaged weights, and the configuration with which mergekit makes the same average.

    The configuration names the parents by folders beside it; the model card says how to get them.
    """
    from sacpo.steps.merge import merged

    model = merged(parents[0], parents[1], q)
    model.save_pretrained(out)
    models = [{"model": role, "parameters": {"weight": w}} for role, w in zip(trial.policy, (1 - q, q), strict=True)]
    merge = {"merge_method": "linear", "models": models, "dtype": str(model.dtype).removeprefix("torch.")}
    (out / MERGE_FILE).write_text(json.dumps(merge, indent=1) + "\n")  # JSON is YAML


def _find_trial(plan: Plan, name: str) -> Trial:
    for trial in plan.trials:
        if name in (trial.trial_id, trial.label):
            return trial
    labels = [trial.label for trial in plan.trials]
    similar = difflib.get_close_matches(name, labels, n=1)
    hint = f"; did you mean {similar[0]!r}?" if similar else ""
    raise SacpoError("\n  ".join([f"no trial {name!r} in this sweep{hint}", *labels]))
