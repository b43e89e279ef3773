"""The plan that a results folder keeps (`plan.json`): reading and writing it, and continuing its sweep.

Commands that read results, judge again or export use the kept plan and never plan again. Only `sacpo sweep` makes a new
plan, and continues in a results folder only if both plans are of the same work.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacpo.errors import SacpoError
from sacpo.planning.judge_payloads import CanaryPayload, JudgePayload
from sacpo.planning.kinds import KINDS
from sacpo.planning.plan import Plan, read_plan
from sacpo.results.sweep_facts import SWEEP_FILE, SweepFacts, read_facts
from sacpo.spaces.document import Setting, dotted
from sacpo.spaces.evaluation import JudgeSettings
from sacpo.spaces.search import Proposal
from sacpo.spaces.space import Space
from sacpo.store.backends import LocalBackend
from sacpo.store.results_location import ResultsLocation

PLAN_FILE = "plan.json"
_SHOWN = 5  # differences that the refusal of another space lists


@dataclass(frozen=True)
class KeptSweep:
    """The sweep of a results folder.

    Attributes:
        plan: Its plan.
        facts: Its facts; None if its first run was killed before it wrote them.
    """

    plan: Plan
    facts: SweepFacts | None


def read_kept_plan(folder: Path) -> Plan:
    """The plan of a results folder.

    Raises:
        SacpoError: the folder has no `plan.json`, or it cannot be read.
    """
    path = folder / PLAN_FILE
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise SacpoError(f"{folder} is not a results folder: {PLAN_FILE} is missing") from None
    return read_plan(content, str(path))


def find_kept(location: ResultsLocation) -> KeptSweep | None:
    """The sweep of a results folder; None if the folder is new.

    Raises:
        SacpoError: the folder has results, but their plan or facts are missing or cannot be read.
    """
    folder = location.fetch()
    has_facts = (folder / SWEEP_FILE).exists()
    if not has_facts and not (folder / PLAN_FILE).exists():
        return None
    return KeptSweep(read_kept_plan(folder), read_facts(folder) if has_facts else None)


def write_plan(plan: Plan, folder: Path) -> None:
    """Write `plan.json`.

    Raises:
        StoreError: it cannot be written.
    """
    LocalBackend(folder).write(PLAN_FILE, plan.to_json().encode())


def refusal(kept: Plan, plan: Plan, location: ResultsLocation, store: str) -> str | None:
    """Why a plan cannot continue in a results folder that holds another plan's sweep; None if it can.

    Args:
        kept: The plan of the results folder.
        plan: The new plan.
        location: The results folder.
        store: URI of its store, which the way out names.
    """
    if kept.plan_id == plan.plan_id and _same_search(kept.space, plan.space):
        return None
    differences = list(itertools.islice(plan_differences(kept, plan), _SHOWN + 1))
    lines = [f"  {line}" for line in differences[:_SHOWN]] + ["  ..."] * (len(differences) > _SHOWN)
    return "\n".join(
        [
            f"--results {location.uri}: holds the results of another sweep, {kept.space.name!r}; it differs in",
            *lines,
            f"give another folder with --results, and --store {store} so that no step that both share is run again",
        ]
    )


def kept_proposals(kept: KeptSweep | None, space: Space) -> tuple[Proposal, ...]:
    """What the search of a space proposed so far; nothing if the results folder is new or holds another search."""
    return kept.plan.proposals if kept is not None and _same_search(kept.plan.space, space) else ()


def _same_search(kept: Space, space: Space) -> bool:
    """Whether a search may go on: only its number of trainings may differ."""
    if kept.search is None or space.search is None:
        return kept.search is space.search
    return kept.search.model_copy(update={"trainings": space.search.trainings}) == space.search


def plan_differences(kept: Plan, plan: Plan) -> Iterator[str]:
    """The reasons why two plans differ, one line each, the most telling ones first."""
    spaces = (p.space.model_dump(mode="json", exclude={"report", "resources"}) for p in (kept, plan))
    before, after = (dict(_leaves(space, ())) for space in spaces)
    settings = [setting for setting in before | after if before.get(setting, _ABSENT) != after.get(setting, _ABSENT)]
    settings.sort(key=_is_path)  # a file that only moved changes no step
    for setting in settings:
        old, new = before.get(setting, _ABSENT), after.get(setting, _ABSENT)
        yield f"{dotted(setting)}: {old!r} in the results folder, {new!r} in this space"
    recipes = {step.kind: step.recipe for step in kept.steps.values() if KINDS[step.kind].recipe != step.recipe}
    for kind, recipe in recipes.items():
        yield f"recipe of {kind} steps: {recipe} in the results folder, {KINDS[kind].recipe} in this version of sacpo"
    if all(_is_path(setting) for setting in settings) and not recipes:
        yield "the content of an input: data, prompts, model or rubric"


def _is_path(setting: Setting) -> bool:
    return setting[-1] in ("path", "rubric")


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _leaves(value: Any, setting: Setting) -> Iterator[tuple[Setting, Any]]:
    """The single values in nested settings, each with its path."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, (*setting, key))
    elif isinstance(value, list):
        for position, part in enumerate(value):
            yield from _leaves(part, (*setting, position))
    else:
        yield setting, value


def with_added_judges(plan: Plan, kept: Plan) -> Plan:
    """A new plan of the kept plan's sweep, with the judges that `sacpo judge` added to the kept plan.

    Args:
        plan: The new plan.
        kept: The kept plan of the same space, so its judge steps fit the answers of the new plan. The new plan may
            have trials more that a search proposed.
    """
    steps = dict(plan.steps)
    kept_trials = {trial.trial_id: trial for trial in kept.trials}
    judges: list[tuple[str, JudgeSettings]] = []
    trials = []
    for trial in plan.trials:
        kept_trial = kept_trials.get(trial.trial_id)
        if kept_trial is None:
            trials.append(trial)
            continue
        added = kept.added_steps(kept_trial)
        for step_id in added:
            step = steps[step_id] = kept.steps[step_id]
            assert isinstance(step.payload, JudgePayload), "a panel has judge steps"
            judges.append((step.payload.criterion, step.payload.judge))
        panel = {
            name: by_criterion for name, by_criterion in kept_trial.panel.items() if added & {*by_criterion.values()}
        }
        trials.append(trial.model_copy(update={"panel": trial.panel | panel}))
    for step in kept.steps.values():
        payload = step.payload
        if isinstance(payload, CanaryPayload) and (payload.criterion, payload.judge) in judges:
            steps.setdefault(step.id, step)
    return plan.model_copy(update={"trials": tuple(trials), "steps": steps})
