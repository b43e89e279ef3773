"""The training curves of a sweep's stages, one row for each update, from the logs that training steps keep."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from sacpo.execution.artifacts import HISTORY
from sacpo.planning.payloads import AnyTrainPayload, kl_parameter
from sacpo.results.stored_outputs import StoredOutputs

_AS_LOGGED = {
    "loss": "loss",
    "rewards/accuracies": "reward_accuracy",
    "kl": "kl",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "mean_token_accuracy": "token_accuracy",
}
_REWARDS = {
    "rewards/margins": "margin",
    "rewards/chosen": "chosen_logp_change",
    "rewards/rejected": "rejected_logp_change",
}
"""Logged as KL parameter x log-probability ratio to the reference policy; the table has the ratios, in nats."""
CURVES = (*_AS_LOGGED.values(), *_REWARDS.values())
"""The columns of `curves.parquet` that can be drawn over `update`."""


def curves_table(outputs: StoredOutputs) -> pd.DataFrame:
    """The curves of all training steps that are done.

    Returns:
        One row for each update of each step: `step_id`, `label`, `update` (from 1) and `CURVES`, NaN if a method logs
        no such value. Empty if no training is done.
    """
    tables = []
    for step_id, step in outputs.plan.steps.items():
        if not isinstance(step.payload, AnyTrainPayload):
            continue
        content = outputs.file(step_id, HISTORY)
        if content is None:
            continue
        table = _curves(json.loads(content), kl_parameter(step.payload))
        tables.append(table.assign(step_id=step_id, label=step.label)[["step_id", "label", "update", *CURVES]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _curves(history: list[dict[str, Any]], beta: float | None) -> pd.DataFrame:
    log = pd.DataFrame(history)
    columns = {column: log.get(name) for name, column in _AS_LOGGED.items()}
    for name, column in _REWARDS.items():
        columns[column] = log[name] / beta if beta is not None and name in log else None
    if beta is None:
        columns["reward_accuracy"] = None  # of a reward model it is another accuracy
    return pd.DataFrame({"update": range(1, len(log) + 1), **columns}, index=log.index).astype(
        dict.fromkeys(CURVES, "float64")
    )
