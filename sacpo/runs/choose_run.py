"""Chooses a policy from a results folder, and says it in words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from sacpo.errors import SacpoError
from sacpo.reporting.choice_text import choice_text
from sacpo.reporting.preview_text import preview_lines
from sacpo.results.choice import Choice, choose
from sacpo.results.load import Results, load_folder
from sacpo.spaces.constraints import Constraint
from sacpo.store.results_location import ResultsLocation


def choose_policy(location: ResultsLocation, name: str, constraints: Sequence[Constraint]) -> tuple[str, int]:
    """Choose the policy that satisfies the constraints.

    Args:
        location: The results folder.
        name: The folder as the user wrote it, for the commands that come next.
        constraints: The constraints of the command line; the space's if there are none.

    Returns:
        The text, and the exit status: 0 if a policy is chosen, 1 if none qualifies.

    Raises:
        SacpoError: it is not a results folder, or nothing can be chosen from it.
    """
    results = load_folder(location.fetch())
    asked = constraints or space_constraints(results)
    choice = choose(results, asked)
    names = {"win_rate": "--at-least", "mean_score": "--mean-score-at-least"}
    options = [part for c in constraints for part in (names[c.measure], f"{c.criterion}={c.at_least:g}")]
    if constraints and constraints[0].confidence != Constraint.model_fields["confidence"].default:
        options += ["--confidence", f"{constraints[0].confidence:g}"]
    label = None if choice.chosen is None else choice.labels[choice.chosen]
    export = "" if label is None else shlex.join(["sacpo", "export", name, label, "my-policy", *options])
    setting = "" if choice.suggestion is None else choice.suggestion.setting
    extend = shlex.join(["sacpo", "extend", name, "--set", setting]) if setting else ""
    previewed = [c for c in asked if c.measure == "win_rate"]
    expected = previewed if choice.suggestion is None else []  # the suggestion is the preview's already
    lines = [choice_text(choice, export, extend), *preview_lines(results.comparisons.get("preview"), expected)]
    return "\n".join(lines), 0 if choice.chosen is not None else 1


def space_constraints(results: Results) -> list[Constraint]:
    """The constraints of the space of a results folder; folders of older versions have none."""
    return [Constraint(**constraint) for constraint in results.sweep.space.get("constraint", [])]


def certificate_of(results: Results, constraints: Sequence[Constraint]) -> Choice | None:
    """The choice under the command line's constraints or the space's; None without any.

    Raises:
        SacpoError: the command line has constraints under which nothing can be chosen.
    """
    asked = constraints or space_constraints(results)
    if not asked:
        return None
    try:
        return choose(results, asked)
    except SacpoError:
        if constraints:
            raise
        return None
