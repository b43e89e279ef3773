"""A choice in words: for the terminal, and for the model card."""

from __future__ import annotations

from collections.abc import Iterator

from sacpo.results.choice import Choice, Tail
from sacpo.spaces.constraints import Constraint
from sacpo.statistics.win_rate import Estimate

RULE = (
    "prompts are split by a hash of their text; the policies on the front of the choosing part are tested on the "
    "certifying part, from the most conservative one, until the first that is not shown to satisfy the constraint; "
    "ties count half, missing verdicts as lost"
)


def choice_text(choice: Choice, export: str, extend: str = "") -> str:
    """The choice as the terminal shows it.

    Args:
        choice: The choice.
        export: Command that exports the chosen policy; empty if none qualifies.
        extend: Command that trains the policy that the preview expects to qualify; empty without one.
    """
    lines = _chosen(choice, export) if choice.chosen is not None else _none(choice, extend)
    return "\n".join([*lines, "", f"rule: {RULE}"])


def certificate_lines(choice: Choice, trial: str) -> list[str]:
    """What the certifying part says of a policy, one line for each constraint."""
    return [
        f"{_asked(constraint)}: {'certified' if trial in choice.certified_trials else 'not certified'}; "
        f"{row['certifying']:.3f} on {row['n_certifying']} prompts that had no part in the choice, "
        f"lower bound {row['lower_bound']:.3f} (for this policy by itself)"
        for constraint in choice.constraints
        for row in [choice.row(trial, constraint.key)]
    ]


def _asked(constraint: Constraint) -> str:
    return f"{constraint.key} at least {constraint.at_least:g} with confidence {constraint.confidence:g}"


def _chosen(choice: Choice, export: str) -> Iterator[str]:
    assert choice.chosen is not None
    assert choice.gain is not None
    yield f"chosen: {choice.labels[choice.chosen]}"
    for line, constraint, tail in zip(
        certificate_lines(choice, choice.chosen), choice.constraints, choice.tails, strict=True
    ):
        yield f"  {line}"
        if constraint.criterion in choice.ties_lost:
            yield f"  with ties as lost, the lower bound is {choice.ties_lost[constraint.criterion]:.3f}"
        yield f"  {_tail_text(tail, constraint)}"
    yield f"  {choice.objective} {_estimate(choice.gain)} on the certifying part"
    if choice.cost is None:
        yield f"  no policy has more {choice.objective} on the choosing part: the constraint costs nothing"
    else:
        best = choice.labels[choice.best]
        yield f"  cost: {_estimate(choice.cost)} less {choice.objective} than {best}, the best without the constraint"
    yield f"  {choice.certified} of {len(choice.sequence)} policies on the front of the choosing part are certified"
    yield f"export it with: {export}"


def _none(choice: Choice, extend: str) -> Iterator[str]:
    yield f"none qualifies: no policy is shown to have {' and '.join(map(_asked, choice.constraints))}"
    first = choice.sequence[0]
    yield f"the most conservative policy on the front of the choosing part, {choice.labels[first]}:"
    yield from (f"  {line}" for line in certificate_lines(choice, first))
    if choice.suggestion is not None:
        advice = choice.suggestion
        yield (
            f"the preview expects the bound from λ = {advice.expected:.3g} on, and its 95 % band is above it from λ = "
            f"{advice.qualifies:.3g} on ({advice.chain}, β = {advice.beta:g})"
        )
        if extend:
            yield f"train it with: {extend}"
    if choice.needed is None:
        yield "it is not above the bound there, so more prompts alone would not help"
        return
    rows = (choice.row(first, constraint.key) for constraint in choice.constraints)
    yield (
        f"about {choice.needed} prompts of each constrained criterion, half of them in the certifying part, would "
        "certify it with 80 % power if its scores go on as on that part so far; there are "
        f"{min(int(row['n_choosing'] + row['n_certifying']) for row in rows)}"
    )


def _tail_text(tail: Tail, constraint: Constraint) -> str:
    share, bound = tail.below
    text = f"{share:.1%} of the prompts (at most {bound:.1%}) are below {constraint.at_least:g} by themselves"
    if tail.category is None:
        return text
    name, rate, low = tail.category
    return f"{text}; worst category: {name}, {rate:.3f}, lower bound {low:.3f}"


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
