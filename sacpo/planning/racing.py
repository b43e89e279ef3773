"""Plans a race: judge steps in rounds, and after each round but the last a step that stops policies.

Verdicts that cannot matter are not asked for. After every round a `race` step predicts from the verdicts so far which
policies can still reach the front when all prompts are judged; the later judge steps of the others end without asking.
With a constraint the policies race for the choice instead: the rounds ask the choosing part of the prompts first, and
the certifying part last, of which no race sees a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sacpo.planning.evaluation_steps import EvaluationSteps
from sacpo.planning.judge_payloads import RacePayload, Round
from sacpo.planning.plan import Trial
from sacpo.planning.prompt_parts import Part
from sacpo.spaces.constraints import objective_of
from sacpo.spaces.evaluation import CRITERIA
from sacpo.spaces.space import Space

LOOKS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)
"""Shares of the prompts after which a race looks at the verdicts (simulated by `python -m tests.benchmarks.racing`)."""
MOST_LOST = 0.015
"""Expected number of policies that all races of a sweep together stop although they would have got there."""
PREVIOUS = "race"
"""Role of the race before."""


@dataclass(frozen=True)
class Role:
    """What a judge step is to a race."""

    trial: str
    criterion: str
    number: int

    def __str__(self) -> str:
        return f"{self.trial} {self.criterion} {self.number}"


def parse_role(role: str) -> Role | None:
    """The role of a judge step; None for another parent."""
    match role.split(" "):
        case [trial, criterion, number]:
            return Role(trial, criterion, int(number))
        case _:
            return None


def prompts_role(criterion: str) -> str:
    """Role of the baseline's answers, which name all prompts of a criterion."""
    return f"prompts_{criterion}"


def rounds(space: Space, trial: str) -> list[Round]:
    """The rounds in which a trial is judged; none without racing."""
    if not space.evaluation.racing:
        return []
    part: Part = "choosing" if space.constraint else "all"
    result = [
        Round(trial=trial, part=part, first=first, last=last)
        for first, last in zip([0.0, *LOOKS], [*LOOKS, 1.0], strict=True)
    ]
    return [*result, Round(trial=trial, part="certifying", first=0.0, last=1.0)] if space.constraint else result


def add_rounds(trials: Iterable[Trial], baseline: Trial, steps: EvaluationSteps) -> list[Trial]:
    """The trials with the judge steps of the later rounds. Sentinels and served policies are judged in full.

    Args:
        trials: All trials, with the steps of the first round.
        baseline: The SFT policy's.
        steps: Where steps are added.
    """
    space = steps.space
    by_id = {trial.trial_id: trial for trial in trials}
    racing = [trial.trial_id for trial in by_id.values() if trial.policy and trial.trial_id != baseline.trial_id]
    if not space.evaluation.racing or not racing:
        return list(by_id.values())
    if space.constraint:
        criteria = tuple(dict.fromkeys((objective_of(space.constraint), *(c.criterion for c in space.constraint))))
    else:
        criteria = CRITERIA
    race: str | None = None
    races = len(LOOKS) + bool(space.constraint)  # the last one when the choosing part is complete
    for number in range(1, races + 1):
        parents = {prompts_role(criterion): baseline.generate[criterion] for criterion in criteria}
        if race is not None:
            parents[PREVIOUS] = race
        for trial_id in racing:
            for name, criterion, *judged in _by_criterion(by_id[trial_id]):
                if not name and criterion in criteria:
                    parents |= {str(Role(trial_id, criterion, i)): step for i, step in enumerate(judged)}
        payload = RacePayload(
            constraints=tuple(space.constraint),
            criteria=criteria,
            part="choosing" if space.constraint else "all",
            most_lost=MOST_LOST * number / races,
            min_coverage=space.evaluation.min_coverage,
        )
        race = steps.graph.add("race", f"race {number}", payload, parents)
        for trial_id in racing:
            trial = by_id[trial_id]
            next_round = rounds(space, trial_id)[number]
            sides = trial.generate, baseline.generate, f"{trial.label}, round {number + 1}"
            later = {
                name: {c: (*trial.rounds.get(name, {}).get(c, ()), step) for c, step in added.items()}
                for name, added in steps.judges(*sides, next_round, race).items()
            }
            by_id[trial_id] = trial.model_copy(update={"rounds": later})
    return list(by_id.values())


def _by_criterion(trial: Trial) -> Iterable[tuple[str, ...]]:
    """(judge's name, criterion, steps of its rounds ...) of the trial."""
    steps: dict[tuple[str, str], tuple[str, ...]] = {}
    for name, criterion, step in trial.judge_steps():
        steps[name, criterion] = (*steps.get((name, criterion), ()), step)
    return [(*key, *values) for key, values in steps.items()]
