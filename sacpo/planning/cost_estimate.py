"""What a plan's judging will ask for and cost, and what its prompts can show: for `--dry-run`. Pure."""

from __future__ import annotations

from collections.abc import Callable

from sacpo.data.canaries import canned_pairs
from sacpo.judges.rubric import RUBRICS, messages
from sacpo.planning.plan import Plan, Step
from sacpo.spaces.evaluation import LLMJudge
from sacpo.spaces.validation import dotted, judges
from sacpo.statistics.power import smallest_difference

_CHARACTERS_A_TOKEN = 4  # of English text, roughly, for common tokenizers


def describe_judging(plan: Plan, is_done: Callable[[str], bool]) -> list[str]:
    """Lines on calls and price of every LLM judge, and on the smallest difference each criterion's prompts can show.

    Args:
        plan: The plan.
        is_done: Whether a step is in the store already.
    """
    lines = []
    for where, judge in judges(plan.space):
        if isinstance(judge, LLMJudge):
            steps = [s for s in plan.steps.values() if s.local.get("base_url", "") == judge.base_url]
            mine = [
                s for s in steps if s.payload["criterion"] == where[1] and s.payload["judge"]["model"] == judge.model
            ]
            calls = sum(_calls(plan, step, judge) for step in mine if not is_done(step.id))
            lines.append(
                f"{dotted(where)}: {judge.model}, at most {calls:,} calls{_price(plan, str(where[1]), judge, calls)}"
            )
    for criterion, prompts in plan.prompts.items():
        shown = f"a win rate {smallest_difference(len(prompts)):.3f} away from 0.5 (80 % power, worst case)"
        lines.append(f"{criterion}: {len(prompts)} prompts can show {shown}")
    return lines


def _calls(plan: Plan, step: Step, judge: LLMJudge) -> int:
    criterion = step.payload["criterion"]
    samples = plan.space.evaluation.generation.samples
    canned = len(canned_pairs(criterion, step.payload["sentences"])) if step.kind == "canary" else 0
    return (canned or len(plan.prompts[criterion]) * samples) * 2 * judge.repeats


def _price(plan: Plan, criterion: str, judge: LLMJudge, calls: int) -> str:
    """The price of the calls if every answer and every reply is as long as it may be; nothing without prices."""
    prices = judge.calls.price_prompt, judge.calls.price_completion
    if prices[0] is None or prices[1] is None:
        return ""
    frame = sum(len(message["content"]) for message in messages(RUBRICS[criterion], "", "", "", "0" * 16))
    prompt = max(len(prompt.text) for prompt in plan.prompts[criterion])
    tokens = (frame + prompt) / _CHARACTERS_A_TOKEN + 2 * plan.space.evaluation.generation.max_new_tokens
    return f", at most about {calls * (tokens * prices[0] + judge.max_tokens * prices[1]) / 1e6:,.2f} for them"
