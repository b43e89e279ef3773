"""The choice of a policy under constraints, from the tables of a results folder.

The prompts of every criterion are split by a hash of their content. The choosing part orders the policies and picks
among those that qualify; the certifying part alone decides which qualify. What stands about a policy therefore comes
from prompts that had no part in its choice.

The rule is fixed-sequence testing on the front of the choosing part (Learn then Test, Angelopoulos et al. 2021; Pareto
Testing, Laufer-Goldshtein et al., ICLR 2023): policies are tested from the most conservative one, that with the largest
margin, downward, and the first that is not shown to satisfy the constraints ends the sequence. A policy that violates
one is certified with probability 1 - confidence at most, whatever the search did and however many policies there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from sacpo.errors import SacpoError
from sacpo.planning.prompt_parts import certifies
from sacpo.results.constraint_columns import measured_lower_bounds, worst_case_means, worst_score
from sacpo.results.front import candidates, own_verdicts
from sacpo.results.load import Results
from sacpo.results.scores import with_scores
from sacpo.results.suggestion import Suggestion, suggest
from sacpo.results.win_rates import prompt_matrix, scored, verdict_scale
from sacpo.spaces.constraints import Constraint, objective_of
from sacpo.statistics.certificate import lower_bounds, prompts_needed, share_upper_bound
from sacpo.statistics.mean_bounds import prompts_for_mean
from sacpo.statistics.pareto import on_front
from sacpo.statistics.win_rate import CONFIDENCE, Estimate, differences, estimates


def choice_table(trials: pd.DataFrame, verdicts: pd.DataFrame, constraints: Sequence[Constraint]) -> pd.DataFrame:
    """One row for each candidate and criterion: its win rates on the two parts, and the lower bound on the second.

    Args:
        trials: The trial table. The SFT policy is no candidate: its win rate is 0.5 by definition.
        verdicts: Verdicts of the criteria's own judges against the SFT policy.
        constraints: Constraints whose confidences the bounds have; 95 % for other criteria. One on a mean score adds
            rows whose criterion is its key.

    Returns:
        trial_id, criterion, choosing, n_choosing (win rate and prompts), certifying, n_certifying, confidence,
        lower_bound (with missing verdicts as lost) and verdicts (outcomes or probabilities).
    """
    names = trials.loc[candidates(trials) & (trials["method"] != "sft"), "trial_id"]
    bounded = {c.key: c for c in constraints}
    rows = []
    measured = with_scores(verdicts[verdicts["trial_id"].isin(names)], constraints)
    for criterion, group in measured.groupby("criterion"):
        in_second = group["prompt_id"].map(certifies).astype(bool)
        asked = bounded.get(str(criterion), Constraint(criterion="any", at_least=0.5, confidence=CONFIDENCE))
        first, second = (prompt_matrix(scored(group[part])).reindex(columns=names) for part in (~in_second, in_second))
        table = pd.DataFrame(
            {
                "trial_id": names.to_numpy(),
                "criterion": criterion,
                "choosing": first.mean().to_numpy(),
                "n_choosing": first.notna().sum().to_numpy(),
                "certifying": second.mean().to_numpy(),
                "n_certifying": second.notna().sum().to_numpy(),
                "confidence": asked.confidence,
                "lower_bound": measured_lower_bounds(asked, group[in_second], names.tolist()),
                "verdicts": verdict_scale(group),
            }
        )
        rows.append(table)
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


@dataclass(frozen=True)
class Tail:
    """What the mean of one criterion hides, on the certifying part of the chosen policy.

    Attributes:
        criterion: The constrained criterion.
        below: Share of the prompts whose mean score is below the constraint's bound, and the upper bound of this share.
        category: The category with the lowest win rate, its win rate, and its lower bound, adjusted for the number of
            categories (Bonferroni); None with fewer than two categories.
    """

    criterion: str
    below: tuple[float, float]
    category: tuple[str, float, float] | None


@dataclass(frozen=True)
class Choice:
    """The outcome of a choice.

    Attributes:
        constraints: What the policy had to satisfy.
        objective: The criterion that was maximised.
        sequence: Ids of the policies in the order in which they were tested: the front of the choosing part.
        certified: How many of them, from the start, are certified.
        chosen: The certified policy with the largest objective on the choosing part; None if none qualifies.
        table: The rows of `choice_table`.
        labels: Trial id to label.
        best: The policy with the largest objective on the choosing part, whatever the constraints say.
        gain: The chosen policy's objective on the certifying part, 95 % interval.
        cost: The objective of `best` minus that of the chosen policy, on the certifying part, 95 % interval.
        ties_lost: Criterion to the lower bound of the chosen policy if ties count as lost too.
        tails: One for each constraint.
        needed: If none qualifies: how many prompts of each constrained criterion, both parts together, would certify
            the first policy of the sequence with 80 % power if its scores go on as so far; None if it is not above the
            bounds on the certifying part.
        suggestion: If none qualifies under one constraint: what the preview expects to qualify; None without a preview.
    """

    constraints: tuple[Constraint, ...]
    objective: str
    sequence: tuple[str, ...]
    certified: int
    chosen: str | None
    table: pd.DataFrame
    labels: dict[str, str]
    best: str
    gain: Estimate | None = None
    cost: Estimate | None = None
    ties_lost: dict[str, float] = field(default_factory=dict)
    tails: tuple[Tail, ...] = ()
    needed: int | None = None
    suggestion: Suggestion | None = None

    def row(self, trial: str, criterion: str) -> pd.Series:
        """The row of a policy and a criterion."""
        rows = self.table[(self.table["trial_id"] == trial) & (self.table["criterion"] == criterion)]
        return rows.iloc[0]

    @property
    def certified_trials(self) -> tuple[str, ...]:
        """Ids of the certified policies."""
        return self.sequence[: self.certified]


def choose(results: Results, constraints: Sequence[Constraint]) -> Choice:
    """Choose the policy with the largest objective among those that are certified to satisfy the constraints.

    Raises:
        SacpoError: there is no constraint, a criterion has no verdicts, no policy is done, or a part has no prompts.
    """
    if not constraints:
        raise SacpoError(
            "there is no constraint; give one with --at-least, such as --at-least harmlessness=0.6, or in the space"
        )
    trials, bounded = results.trials, [c.key for c in constraints]
    verdicts = own_verdicts(results.verdicts, _baseline(trials))
    table = choice_table(trials, verdicts, constraints)
    if table.empty:
        raise SacpoError(
            "no policy has verdicts yet; run the sweep's own command again, which goes on where it stopped"
        )
    judged = set(table["criterion"])
    means = [c for c in constraints if c.measure == "mean_score" and c.criterion in judged]
    if scoreless := [c.criterion for c in means if c.key not in judged]:
        raise SacpoError(
            f"the judge of {', '.join(scoreless)} compares answers and gives no score, so no mean score can be "
            "bounded; bound the win rate with --at-least, or judge by a reward_model or a trained_reward_model"
        )
    if unknown := [name for name in bounded if name not in set(table["criterion"])]:
        known = ", ".join(sorted(table["criterion"].unique()))
        raise SacpoError(f"no verdicts on {', '.join(unknown)}; this sweep has {known}")
    objective = objective_of(constraints)
    first, bounds = (table.pivot(index="trial_id", columns="criterion", values=v) for v in ("choosing", "lower_bound"))
    first = first.dropna(subset=[*bounded, objective])
    if first.empty:
        raise SacpoError(
            "the prompts are too few to be split: a part has none; give more prompts in evaluation.CRITERION.prompts"
        )
    margin = pd.concat([first[c.key] - c.at_least for c in constraints], axis=1).min(axis=1)
    position = {trial: i for i, trial in enumerate(trials["trial_id"])}
    on_part = first.index[on_front(np.column_stack([margin, first[objective]]))]
    sequence = tuple(sorted(on_part, key=lambda t: (-margin[t], -first.loc[t, objective], position[t])))
    shown = [all(bounds.loc[t, c.key] >= c.at_least for c in constraints) for t in sequence]
    certified = next((i for i, passed in enumerate(shown) if not passed), len(shown))
    choice = Choice(
        constraints=tuple(constraints),
        objective=objective,
        sequence=sequence,
        certified=certified,
        # On a front the objective rises as the margin falls, so the last certified policy has the largest.
        chosen=sequence[certified - 1] if certified else None,
        table=table,
        labels={str(k): str(v) for k, v in trials.set_index("trial_id")["label"].items()},
        best=str(first[objective].idxmax()),
    )
    verdicts = with_scores(verdicts, constraints)
    if certified:
        return _certificate(choice, verdicts)
    suggestion = suggest(results, constraints[0]) if len(constraints) == 1 else None
    return replace(_shortfall(choice, verdicts), suggestion=suggestion)


def _baseline(trials: pd.DataFrame) -> str:
    return str(trials.loc[trials["method"] == "sft", "trial_id"].iloc[0])


def _certifying(verdicts: pd.DataFrame, criterion: str, *trials: str) -> pd.DataFrame:
    """Verdicts of these trials on the certifying part of a criterion."""
    rows = verdicts[(verdicts["criterion"] == criterion) & verdicts["trial_id"].isin(trials)]
    return rows[rows["prompt_id"].map(certifies).astype(bool)]


def _certificate(choice: Choice, verdicts: pd.DataFrame) -> Choice:
    """The choice with what is known of the chosen policy."""
    assert choice.chosen is not None
    chosen, best = choice.chosen, choice.best
    decided = scored(_certifying(verdicts, choice.objective, chosen, best))
    means = prompt_matrix(decided).reindex(columns=[chosen, best]).to_numpy(dtype=float)
    bounded = {c: _certifying(verdicts, c.key, chosen) for c in choice.constraints}
    return replace(
        choice,
        gain=estimates(means[:, :1])[0],
        cost=differences(means, [(1, 0)])[0] if best != chosen else None,
        ties_lost={
            c.criterion: float(lower_bounds(worst_case_means(rows, 0.0, ties_lost=True).to_numpy(), c.confidence)[0])
            for c, rows in bounded.items()
            if c.measure == "win_rate"
        },
        tails=tuple(_tail(constraint, rows) for constraint, rows in bounded.items()),
    )


def _tail(constraint: Constraint, rows: pd.DataFrame) -> Tail:
    means = _worst_means(constraint, rows)
    count = int((means < constraint.at_least).sum())
    below = count / len(means), share_upper_bound(count, len(means), constraint.confidence)
    category_of = rows.drop_duplicates("prompt_id").set_index("prompt_id")["category"].fillna("")
    groups = {str(name): group for name, group in means.groupby(category_of.reindex(means.index)) if name}
    if len(groups) < 2:
        return Tail(constraint.criterion, below, None)
    worst = min(groups, key=lambda name: float(groups[name].mean()))
    adjusted = constraint.model_copy(update={"confidence": 1 - (1 - constraint.confidence) / len(groups)})
    bound = float(measured_lower_bounds(adjusted, rows[rows["prompt_id"].isin(groups[worst].index)])[0])
    return Tail(constraint.criterion, below, (worst, float(groups[worst].mean()), bound))


def _worst_means(constraint: Constraint, rows: pd.DataFrame) -> pd.Series[float]:
    """Mean of each prompt of one trial, with missing verdicts at their worst."""
    worst = 0.0 if constraint.measure == "win_rate" else worst_score(rows)
    means: pd.Series[float] = worst_case_means(rows, worst).iloc[:, 0]
    return means


def _shortfall(choice: Choice, verdicts: pd.DataFrame) -> Choice:
    """The choice with the number of prompts that would certify its most conservative policy."""
    first = choice.sequence[0]  # no other is certified before it
    numbers = [
        (prompts_needed if c.measure == "win_rate" else prompts_for_mean)(
            _worst_means(c, rows), c.at_least, c.confidence
        )
        for c in choice.constraints
        if len(rows := _certifying(verdicts, c.key, first))
    ]
    known = [number for number in numbers if number is not None]
    return replace(choice, needed=2 * max(known)) if len(known) == len(choice.constraints) else choice
