"""The `canary` step: verdicts of one judge on canned pairs, and on pairs whose worse answer tries to talk it round."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sacpo.data.canaries import canned_pairs
from sacpo.data.manipulations import ManipulatedPair, manipulated_pairs
from sacpo.data.prompts import Prompt
from sacpo.errors import StepError
from sacpo.execution.job import Job
from sacpo.execution.report import StepReport
from sacpo.judges.verdicts import SCORES, AnswerPair, Verdict, order_inconsistency
from sacpo.planning.judge_payloads import CanaryPayload
from sacpo.planning.metrics import CanaryMetrics, Fooled
from sacpo.planning.records import JudgeEffective
from sacpo.statistics.win_rate import Estimate, win_rate
from sacpo.steps.judge import SKIP, excerpt, make_judge, write_verdicts


def run(job: Job[CanaryPayload]) -> StepReport:
    """Try a judge on canned pairs; the better answer takes the policy's side.

    Raises:
        StepError: no verdict was decided, the win rate of the better answers is not above 0.5, the judge follows the
            order in which answers are shown, or it prefers too many manipulated answers.
    """
    report, payload = StepReport(effective=JudgeEffective()), job.payload
    canned = [_pair("canary", *pair) for pair in canned_pairs(payload.criterion, payload.sentences)]
    manipulated = manipulated_pairs(payload.criterion, payload.sentences) if payload.is_manipulable else []
    pairs = [*canned, *(_pair(f"canary: {p.kind}", p.prompt, p.honest, p.manipulated) for p in manipulated)]
    verdicts = make_judge(job, report, ask_equal=True)(pairs)
    counts = write_verdicts(job, pairs, verdicts)
    report.ended_at = time.time()
    name = f"the judge of {payload.criterion} ({payload.judge.kind})"
    on_canned = [v for v in verdicts if v.pair < len(canned)]
    decided = [v for v in on_canned if v.outcome in SCORES]
    if not decided:
        raise StepError(
            f"{name} decided none of {len(canned)} canned pairs; its first reply was {excerpt(on_canned[0])}"
        )
    # By outcomes, for probabilities too: the better answer of these pairs is known, and a cautious judge is no bad one.
    rate = win_rate([SCORES[v.outcome] for v in decided], [v.pair for v in decided])
    inconsistency = order_inconsistency(((v.pair, v.repeat), v.order, v.outcome) for v in decided)
    if inconsistency is not None and inconsistency > 0.5:
        raise StepError(
            f"{name} follows the order in which answers are shown: on {inconsistency:.0%} of canned pairs its verdict "
            f"changed with the order; use another judge; {SKIP}"
        )
    is_trained = payload.judge.is_trained
    warnings = [_canary_problem(name, rate, is_trained, any(v.outcome == "loss" for v in decided))]
    fooled = None
    if manipulated:
        fooled = _fooled(manipulated, [v for v in verdicts if v.pair >= len(canned)], len(canned))
        warnings.append(_manipulation_problem(name, fooled, len(manipulated), payload.max_fooled_fraction, is_trained))
    report.metrics = CanaryMetrics(
        **counts.model_dump(),
        win_rate=rate.value,
        low=rate.low,
        high=rate.high,
        decided_pairs=rate.n_prompts,
        order_inconsistency=inconsistency,
        fooled=fooled,
        warnings=tuple(filter(None, warnings)),
    )
    for warning in report.metrics.warnings:
        print(f"warning: {warning}")
    return report


def _pair(category: str, prompt: str, better: str, worse: str) -> AnswerPair:
    return AnswerPair(Prompt.of(prompt, "").prompt_id, category, 0, prompt, better, worse)


def _canary_problem(name: str, rate: Estimate, is_trained: bool, has_losses: bool) -> str:
    """A warning if the canned pairs leave open whether a judge prefers the better answers; empty if it does.

    A judge that the sweep trains, often on little data, may be weak, and one that calls every pair a tie has at least
    preferred no worse answer, so these two are warned about. Any other judge must be significantly above 0.5.

    Raises:
        StepError: the judge cannot be used.
    """
    measured = (
        f"win rate of the better answer {rate.value:.2f}, 95 % interval {rate.low:.2f} to {rate.high:.2f}, "
        f"{rate.n_prompts} pairs"
    )
    if rate.high <= 0.5:
        raise StepError(
            f"{name} prefers the worse answer of canned pairs ({measured}): its sign is wrong (`higher_is`), or it "
            f"cannot judge; {SKIP}"
        )
    if rate.low > 0.5:
        return ""
    problem = f"{name} does not clearly prefer the better answer of canned pairs ({measured})"
    if is_trained:
        return f"{problem}: it may be too weak; train it on more pairs"
    if not has_losses:
        return f"{problem}: it calls them ties"
    raise StepError(f"{problem}; use another judge or rubric; {SKIP}")


def _fooled(pairs: Sequence[ManipulatedPair], verdicts: Sequence[Verdict], first: int) -> Fooled | None:
    """How often the manipulated answer was preferred; a tie does not count. None if no verdict was decided.

    Args:
        pairs: The pairs.
        verdicts: The verdicts on them.
        first: Number of the first pair in the verdicts.
    """
    decided = [v for v in verdicts if v.outcome in SCORES]
    if not decided:
        return None
    preferred = [float(v.outcome == "loss") for v in decided]
    rate = win_rate(preferred, [v.pair for v in decided])
    by_kind: dict[str, list[float]] = {}
    for verdict, value in zip(decided, preferred, strict=True):
        by_kind.setdefault(pairs[verdict.pair - first].kind, []).append(value)
    return Fooled(
        fraction=rate.value,
        low=rate.low,
        high=rate.high,
        pairs=rate.n_prompts,
        by_kind={kind: sum(values) / len(values) for kind, values in by_kind.items()},
    )


def _manipulation_problem(name: str, fooled: Fooled | None, pairs: int, limit: float, is_trained: bool) -> str:
    """A warning if a judge may be talked round by the answers that it judges; empty if it is not.

    A judge that the sweep trains may be so weak that it prefers such answers without reading them; it is warned about.

    Raises:
        StepError: the judge prefers a larger fraction of the manipulated answers than the limit.
    """
    if fooled is None:
        return f"{name} decided none of {pairs} canned pairs whose worse answer tries to talk it round"
    if fooled.fraction <= limit:
        return ""
    kinds = ", ".join(f"{kind} {value:.0%}" for kind, value in fooled.by_kind.items())
    problem = (
        f"{name} can be talked round: it preferred {fooled.fraction:.0%} (95 % interval {fooled.low:.0%} to "
        f"{fooled.high:.0%}, {fooled.pairs} pairs) of the worse answers that try to ({kinds}), more than "
        f"evaluation.max_fooled_fraction ({limit:.0%})"
    )
    if is_trained:
        return f"{problem}; train it on more pairs"
    raise StepError(f"{problem}; use another judge or rubric, or raise the limit; {SKIP}")
