"""The table of judges: the facts by which the win rates of a judge can be trusted."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sacpo.planning.judge_payloads import CanaryPayload, JudgePayload
from sacpo.planning.metrics import CanaryMetrics, TrainMetrics
from sacpo.planning.plan import Plan
from sacpo.results.stored_outputs import StoredOutputs
from sacpo.spaces.evaluation import JudgeSettings, LLMJudge, RewardModelJudge

MAIN = "main"
"""Name of a criterion's own judge beside the names of the panel."""
COLUMNS = [
    "criterion",
    "panel",
    "judge",
    "judge_revision",
    "canary_win_rate",
    "canary_order_inconsistency",
    "held_out_accuracy",
    "temperature",
    "calibration_error",
    "canary_pairs",
    "canary_low",
    "canary_high",
    "held_out_pairs",
    "held_out_low",
    "held_out_high",
    "calibration_low",
    "calibration_high",
    "fooled_fraction",
    "fooled_low",
    "fooled_high",
    "fooled_pairs",
    "fooled_by",
    "canary_warnings",
    "verdicts",
]


def judge_name(judge: JudgeSettings) -> str:
    """The model of an LLM judge; the kind of any other judge."""
    return judge.model if isinstance(judge, LLMJudge) else judge.kind


def judge_revision(judge: JudgeSettings) -> str:
    """The revision of the judge's model; empty if it has none."""
    return (judge.revision or "") if isinstance(judge, LLMJudge | RewardModelJudge) else ""


def judges_table(plan: Plan, outputs: StoredOutputs) -> pd.DataFrame:
    """One row for each criterion and judge: canary results, and held-out accuracy and calibration of trained judges."""
    payloads = {step_id: step.payload for step_id, step in plan.steps.items()}
    canaries = {
        (p.criterion, p.judge.model_dump_json()): i for i, p in payloads.items() if isinstance(p, CanaryPayload)
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for trial in plan.trials:
        for name, criterion, step_id in trial.judge_steps():
            payload = payloads[step_id]
            if name in trial.head_to_head or (criterion, name) in rows or not isinstance(payload, JudgePayload):
                continue
            canary = canaries.get((criterion, payload.judge.model_dump_json()))
            rows[criterion, name] = {
                "criterion": criterion,
                "panel": name or MAIN,
                "judge": judge_name(payload.judge),
                "judge_revision": judge_revision(payload.judge),
                "verdicts": payload.judge.verdicts,
                **_canary_columns(canary, outputs),
                **_accuracy_columns(plan.steps[step_id].parents.get("model"), outputs),
            }
    return pd.DataFrame(list(rows.values()), columns=COLUMNS)


def _canary_columns(step_id: str | None, outputs: StoredOutputs) -> dict[str, float | str | None]:
    record = outputs.record(step_id) if step_id is not None else None
    if record is None or not isinstance(record.metrics, CanaryMetrics):
        return {}
    metrics = record.metrics
    fooled = metrics.fooled
    by_kind = {} if fooled is None else fooled.by_kind
    return {
        "canary_win_rate": metrics.win_rate,
        "canary_low": metrics.low,
        "canary_high": metrics.high,
        "canary_pairs": metrics.decided_pairs,
        "canary_order_inconsistency": metrics.order_inconsistency,
        "fooled_fraction": fooled.fraction if fooled else None,
        "fooled_low": fooled.low if fooled else None,
        "fooled_high": fooled.high if fooled else None,
        "fooled_pairs": fooled.pairs if fooled else None,
        "fooled_by": ", ".join(f"{kind} {value:.2f}" for kind, value in by_kind.items() if value),
        "canary_warnings": "; ".join(metrics.warnings),
    }


def _accuracy_columns(step_id: str | None, outputs: StoredOutputs) -> dict[str, float | None]:
    record = outputs.record(step_id) if step_id is not None else None
    if record is None or not isinstance(record.metrics, TrainMetrics) or record.metrics.judge is None:
        return {}
    accuracy = record.metrics.judge
    return {
        "held_out_accuracy": accuracy.held_out_accuracy,
        "held_out_low": accuracy.low,
        "held_out_high": accuracy.high,
        "held_out_pairs": accuracy.held_out_pairs,
        "temperature": accuracy.temperature,
        "calibration_error": accuracy.calibration_error,
        "calibration_low": accuracy.calibration_low,
        "calibration_high": accuracy.calibration_high,
    }
