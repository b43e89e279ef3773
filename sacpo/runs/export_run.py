"""Exports the policy of a trial as a plain Hugging Face folder, or all answers for another evaluation harness."""

from __future__ import annotations

import difflib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from sacpo.errors import SacpoError, StoreError, first_line
from sacpo.planning.graph import base_of, with_bases
from sacpo.planning.metrics import ModelMetrics
from sacpo.planning.plan import MERGED_ROLES, MIXED_ROLES, Plan, Trial
from sacpo.reporting.model_card import model_card
from sacpo.results.kept_plan import read_kept_plan
from sacpo.results.load import Results, load_folder
from sacpo.runs.answer_formats import Answers, Format, write_answers
from sacpo.runs.choose_run import certificate_of
from sacpo.runs.report_run import missing_steps, open_store
from sacpo.spaces.constraints import Constraint
from sacpo.spaces.merging import LINEAR, Combination
from sacpo.store.results_location import ResultsLocation

MERGE_FILE = "mergekit.yaml"


def export_policy(
    location: ResultsLocation,
    name: str,
    out: Path,
    constraints: Sequence[Constraint] = (),
    *,
    as_adapter: bool = False,
) -> None:
    """Copy a trial's policy to a folder and write its model card. Each file is verified against its digest first.

    A policy that was trained with LoRA is merged into its base's weights: added in float32, rounded once.

    Args:
        location: The results folder.
        name: The trial's id or label.
        out: A folder that is new or empty.
        constraints: What the model card certifies, if the policy qualifies; the space's constraints if there are none.
        as_adapter: Write the adapter alone, for peft.

    Raises:
        SacpoError: there are no such results or no such trial, the trial has no policy, `out` is not empty, or the
            policy is no adapter on one base.
        StoreError: the store lacks the policy.
    """
    folder = location.fetch()
    results, plan = load_folder(folder), read_kept_plan(folder)
    trial = _find_trial(plan, name)
    _check_empty(out)
    if trial.method == "served":
        raise SacpoError(
            f"{trial.label} is served elsewhere: the sweep has its answers, but no weights to export; ask who serves "
            "it for them, or export its answers: sacpo export RESULTS --answers alpaca_eval --out OUT"
        )
    if not trial.policy:
        raise SacpoError(f"{trial.label} is a sentinel: it has answers, but no policy to export")
    choice = certificate_of(results, constraints)
    store = open_store(location, results.sweep)
    policies = with_bases(plan.steps, trial.policy)
    bases = {base_of(plan.steps, step) for step in trial.policy.values()}
    has_adapter = len(policies) > len(trial.policy)
    is_no_sum = MIXED_ROLES[0] in policies or trial.combination != LINEAR
    if as_adapter and (len(bases) > 1 or not has_adapter or is_no_sum):
        raise SacpoError(
            f"{trial.label} is no adapter on one base, since not all of its stages were trained with LoRA, or it is a "
            "logit-mix or a merge that is not linear; leave --adapter out"
        )
    if missing := missing_steps(plan, store, list(policies.values())):
        raise StoreError(f"the store {store.uri} lacks {', '.join(missing)}; run the sweep's own command again")
    folders = {role: store.verified_output_dir(step) for role, step in policies.items()}
    is_mix = MIXED_ROLES[0] in folders
    computed = trial.q is not None or has_adapter
    weights = ["*.safetensors*", "config.json", "adapter_config.json"] if computed else []
    source = next(iter(folders.values()))
    if is_mix:
        _write_mix(plan, trial, folders, out)
    else:
        shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("history.json", *weights))
        if computed:
            _write_weights(folders, trial, out, as_adapter)
        if trial.q is not None and not as_adapter:
            _write_mergekit(trial.combination, trial.q, out)
    row = results.trials.set_index("trial_id").loc[trial.trial_id].to_dict()
    card = model_card(plan, trial, row, results.sweep, choice, as_adapter, _origin(results))
    (out / "README.md").write_text(card, encoding="utf-8")


def push(folder: Path, repository: str) -> str:
    """Upload an exported folder to the hub as a private model, by the hub's own client, and return its address.

    The client takes its token from `HF_TOKEN` or `hf auth login`, and its address from `HF_ENDPOINT`. A repository that
    is there already keeps its visibility.

    Raises:
        SacpoError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi()
    try:
        url = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Policy exported by sacpo")
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        raise SacpoError(
            f"--push {repository}: {first_line(error)}; the policy is in {folder}, and "
            f"`hf upload {repository} {folder}` uploads it later"
        ) from error
    return str(url)


def _origin(results: Results) -> ModelMetrics | None:
    """What the sweep's `model` step recorded; None where its record is not in the tables."""
    metrics = results.steps.loc[results.steps["kind"] == "model", "metrics"]
    return ModelMetrics.model_validate_json(metrics.iloc[0]) if len(metrics) and metrics.iloc[0] != "{}" else None


def _write_weights(folders: dict[str, Path], trial: Trial, out: Path, as_adapter: bool) -> None:
    """Write the weights of a merge, of an adapter merged into its base, or of an adapter alone."""
    from sacpo.steps.policies import adapter_of, full_policy

    if as_adapter:
        adapter_of(folders, trial.q).write(out)
    else:
        full_policy(folders, trial.q, trial.combination).save_pretrained(out)


def _write_mix(plan: Plan, trial: Trial, folders: dict[str, Path], out: Path) -> None:
    """Write both policies, the weight of the second, and the script that lets them answer together."""
    from sacpo.steps import logit_mix
    from sacpo.steps.policies import full_policy, single

    for role, name in zip(MIXED_ROLES, MERGED_ROLES, strict=True):
        parents = single(folders, role)
        ignored = shutil.ignore_patterns("history.json", "*.safetensors*", "adapter_config.json")
        shutil.copytree(parents["policy"], out / name, ignore=ignored)
        full_policy(parents).save_pretrained(out / name)
    recipe = {
        "q": trial.q,
        "prompt_template": plan.space.prompt_template,
        "max_new_tokens": plan.space.evaluation.generation.max_new_tokens,
    }
    (out / "logit_mix.json").write_text(json.dumps(recipe, indent=1) + "\n")
    shutil.copyfile(str(logit_mix.__file__), out / "generate.py")


def _write_mergekit(combination: Combination, q: float, out: Path) -> None:
    """Write the configuration with which mergekit makes the same merge.

    It names the parents by folders beside it; the model card says how to get them.
    """
    dtype = json.loads((out / "config.json").read_text())["dtype"]
    merge = combination.recipe(q) | {"dtype": "float32", "out_dtype": dtype}
    (out / MERGE_FILE).write_text(json.dumps(merge, indent=1) + "\n")  # JSON is YAML


def _find_trial(plan: Plan, name: str) -> Trial:
    for trial in plan.trials:
        if name in (trial.trial_id, trial.label):
            return trial
    labels = [trial.label for trial in plan.trials]
    similar = difflib.get_close_matches(name, labels, n=1)
    hint = f"; did you mean {similar[0]!r}?" if similar else ""
    raise SacpoError("\n  ".join([f"no trial {name!r} in this sweep{hint}", *labels]))


def export_answers(location: ResultsLocation, answer_format: Format, out: Path) -> list[Path]:
    """Write every policy's answers in the format of another evaluation harness; missing answers are left out.

    Args:
        location: The results folder. Neither its store nor a model is needed.
        answer_format: The format.
        out: A folder that is new or empty.

    Returns:
        The files that were written.

    Raises:
        SacpoError: there are no such results, no answers, `out` is not empty, or a package is missing.
    """
    results = load_folder(location.fetch())
    _check_empty(out)
    if results.responses.empty:
        raise SacpoError("no policy has answered yet; run the sweep first")
    created_at = results.sweep.runs[-1].started_at if results.sweep.runs else 0.0
    answered = results.responses.dropna(subset=["response"])
    answers, names = [], dict[str, str]()
    for trial in results.trials.to_dict("records"):
        name = re.sub(r"[^A-Za-z0-9.=@-]+", "_", trial["label"]).strip("_.") or "policy"
        name = f"{name}-{trial['trial_id']}" if name in names.values() else name
        names[trial["trial_id"]] = name
        own = answered[answered["trial_id"] == trial["trial_id"]]
        for criterion, rows in own.groupby("criterion", sort=False):
            answers.append(
                Answers(
                    criterion=str(criterion),
                    label=trial["label"],
                    name=name,
                    is_baseline=trial["method"] == "sft",
                    rows=rows.to_dict("records"),
                    created_at=created_at,
                )
            )
    return write_answers(answers, answer_format, out)


def _check_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SacpoError(f"{out} is not empty; give a new folder")
