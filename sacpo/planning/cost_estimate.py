"""Estimates for `--dry-run`: calls and prices of endpoints, and the smallest effect that the prompts can show. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sacpo.data.canaries import canned_pairs
from sacpo.data.manipulations import MANIPULATED_PAIRS
from sacpo.judges.rubric import RUBRICS, messages
from sacpo.planning.judge_payloads import CanaryPayload, JudgePayload
from sacpo.planning.plan import Plan
from sacpo.spaces.document import dotted
from sacpo.spaces.evaluation import LLMJudge
from sacpo.spaces.judge_checks import judges
from sacpo.spaces.stages import grid_stages, most_policies, proposed_stages
from sacpo.statistics.power import smallest_difference

_CHARACTERS_A_TOKEN = 4  # of English text, roughly, for common tokenizers


def describe_judging(plan: Plan, is_done: Callable[[str], bool]) -> list[str]:
    """One line for every LLM judge and served policy on its calls and their price, and one for every criterion on what
    its prompts can show.

    Args:
        plan: The plan.
        is_done: Whether a step is in the store already.
    """
    lines = []
    for where, judge in judges(plan.space):
        if isinstance(judge, LLMJudge):
            criterion = str(where[1])
            steps = _steps_of(plan, criterion, judge)
            if _prompt_count(plan, criterion) is None:
                lines.append(f"{dotted(where)}: {judge.model}; its calls are known once the prompts are read")
                continue
            calls = sum(_calls(plan, payload, judge) for step_id, payload in steps if not is_done(step_id))
            price = _price(plan, criterion, judge, calls)
            lines.append(f"{dotted(where)}: {judge.model}, at most {calls:,} calls{price}")
    lines += [_describe_served(plan, name, is_done) for name in plan.space.served]
    for criterion in plan.criteria:
        count = _prompt_count(plan, criterion)
        if count is not None:
            shown = f"a win rate {smallest_difference(count):.3f} away from 0.5 (80 % power, worst case)"
            lines.append(f"{criterion}: {count} prompts can show {shown}")
    return lines


def _describe_served(plan: Plan, name: str, is_done: Callable[[str], bool]) -> str:
    """The calls of a served policy, and their price if every answer is as long as it may be."""
    policy, generation = plan.space.served[name], plan.space.evaluation.generation
    trial = next(trial for trial in plan.trials if trial.label == name and trial.method == "served")
    counts = {c: _prompt_count(plan, c) for c, step in trial.generate.items() if not is_done(step)}
    line = f"served.{name}: {policy.model}"
    if None in counts.values():
        return f"{line}; its calls are known once the prompts are read"
    calls = sum(count or 0 for count in counts.values()) * generation.samples
    prices = policy.calls.price_prompt, policy.calls.price_completion
    if prices[0] is None or prices[1] is None:
        return f"{line}, at most {calls:,} calls"
    prompt = max((len(prompt.text) for c in counts for prompt in plan.prompts[c]), default=0) / _CHARACTERS_A_TOKEN
    cost = calls * (prompt * prices[0] + generation.max_new_tokens * prices[1]) / 1e6
    return f"{line}, at most {calls:,} calls, at most about {cost:,.2f} for them"


def describe_search(plan: Plan) -> list[str]:
    """What the search of the space may cost at most beyond the plan; nothing without a search, or at its end."""
    search, seeds = plan.space.search, len(plan.space.seeds)
    if search is None:
        return []
    spent = len(proposed_stages(plan.proposals) - grid_stages(plan.space))
    trainings = max(0, search.trainings - spent) * seeds
    policies = max(0, most_policies(plan.space) - len(plan.proposals)) * seeds if trainings else 0
    lines = [f"search ({search.method}): at most {trainings} more trainings and {policies} more policies, each judged"]
    for where, judge in judges(plan.space):
        if isinstance(judge, LLMJudge) and (prompts := _prompt_count(plan, str(where[1]))) is not None:
            calls = policies * prompts * plan.space.evaluation.generation.samples * 2 * judge.repeats
            price = _price(plan, str(where[1]), judge, calls)
            lines.append(f"  {dotted(where)}: {judge.model}, at most {calls:,} more calls{price}")
    return lines


def _prompt_count(plan: Plan, criterion: str) -> int | None:
    """Prompts of a criterion; None if they are not at hand yet and no `limit` says how many there will be."""
    sources = plan.space.evaluation.criteria[criterion].prompts
    limits = [limit for source in sources if (limit := getattr(source, "limit", None)) is not None]
    return len(plan.prompts[criterion]) or (sum(limits) if len(limits) == len(sources) else None)


def _steps_of(plan: Plan, criterion: str, judge: LLMJudge) -> Iterator[tuple[str, JudgePayload]]:
    """The judge and canary steps of one judge of one criterion."""
    for step_id, step in plan.steps.items():
        payload = step.payload
        if isinstance(payload, JudgePayload) and payload.criterion == criterion and payload.judge == judge:
            yield step_id, payload


def _calls(plan: Plan, payload: JudgePayload, judge: LLMJudge) -> int:
    if isinstance(payload, CanaryPayload):
        pairs = len(canned_pairs(payload.criterion, payload.sentences))
        pairs += MANIPULATED_PAIRS if payload.is_manipulable else 0
    else:
        prompts = _prompt_count(plan, payload.criterion) or 0
        if payload.round is not None:
            prompts = payload.round.count(plan.prompts[payload.criterion], prompts)
        pairs = prompts * plan.space.evaluation.generation.samples
    return pairs * 2 * judge.repeats


def _price(plan: Plan, criterion: str, judge: LLMJudge, calls: int) -> str:
    """The price of the calls if every answer and every reply is as long as it may be; nothing without prices."""
    prices = judge.calls.price_prompt, judge.calls.price_completion
    if prices[0] is None or prices[1] is None:
        return ""
    if judge.max_tokens is None:
        return ", whose price is not known: max_tokens is null, so the endpoint decides how long a reply is"
    frame = sum(len(message["content"]) for message in messages(RUBRICS[criterion], "", "", "", "0" * 16))
    prompt = max((len(prompt.text) for prompt in plan.prompts[criterion]), default=0)
    tokens = (frame + prompt) / _CHARACTERS_A_TOKEN + 2 * plan.space.evaluation.generation.max_new_tokens
    return f", at most about {calls * (tokens * prices[0] + judge.max_tokens * prices[1]) / 1e6:,.2f} for them"
