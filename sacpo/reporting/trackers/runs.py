"""What a tracker gets: one run for each trial, and one for the sweep, from tables and the store."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sacpo.hashing import content_id
from sacpo.planning.metrics import TrainMetrics
from sacpo.results.curves import CURVES, curves_table
from sacpo.results.stored_outputs import StoredOutputs
from sacpo.spaces.evaluation import CRITERIA

if TYPE_CHECKING:
    import pandas as pd

    from sacpo.planning.plan import Plan, Trial
    from sacpo.results.load import Results
    from sacpo.store.step_store import Store

_VALUES = ("kl_to_sft", "mean_response_tokens", "expected_reward", "expected_safety")


@dataclass(frozen=True)
class TrackedRun:
    """A run of a tracker.

    Attributes:
        key: Its id, from the sweep's plan and the trial's id, so that a continued sweep continues the run.
        name: The trial's label, or the sweep's name.
        status: `pending`, `done` or `failed`.
        config: Settings.
        curves: Stage, such as `1-dpo-helpfulness`, to its curves: one row for each update, with `update` and `CURVES`.
        values: Numbers of the trial, such as `helpfulness`, `helpfulness_low` and `helpfulness_high`.
        front: The PNG of the front, for the sweep's run; None for a trial's.
        table: The trials, for the sweep's run; None for a trial's.
    """

    key: str
    name: str
    status: str
    config: dict[str, Any]
    curves: dict[str, pd.DataFrame] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    front: Path | None = None
    table: pd.DataFrame | None = None


class Tracker(Protocol):
    """A tracker's client. Any exception means that the tracker cannot be used now."""

    def send(self, run: TrackedRun) -> None:
        """Create the run, or continue it, with these curves and values."""


def sweep_key(plan: Plan) -> str:
    """Id of the sweep's own run."""
    return plan.plan_id.rpartition("-")[2][:16]


def sweep_run(plan: Plan, results: Results, front: Path) -> TrackedRun:
    """The sweep's own run, with the front as a picture and the trials as a table."""
    done = float((results.trials["status"] == "done").sum())
    status = "done" if done == len(results.trials) else "failed"
    config = {"space": plan.space.model_dump(mode="json"), "plan_id": plan.plan_id}
    return TrackedRun(
        sweep_key(plan),
        plan.space.name,
        status,
        config,
        values={"trials_done": done},
        front=front,
        table=results.trials,
    )


def trial_runs(plan: Plan, store: Store, results: Results) -> Iterator[TrackedRun]:
    """The runs of all trials, with the curves and the log of every stage that is done and the numbers known so far."""
    records = store.records(step_id for step_id, step in plan.steps.items() if step.kind == "train")
    outputs = StoredOutputs(plan.model_copy(update={"steps": {s: plan.steps[s] for s in records}}), store, records, ())
    table = curves_table(outputs)
    curves = dict(iter(table.groupby("step_id"))) if len(table) else {}
    rows = results.trials.set_index("trial_id")
    logs = {step_id: log for step_id in records if (log := store.latest_log(step_id)) is not None}
    for trial in plan.trials:
        stages = {name: step for name, step in _stages(plan, trial).items() if step in records}
        row: Any = rows.loc[trial.trial_id]
        columns = [f"{criterion}{bound}" for criterion in CRITERIA for bound in ("", "_low", "_high")]
        values = {column: float(row[column]) for column in (*columns, *_VALUES) if _is_number(row.get(column))}
        for name, step in stages.items():
            metrics = records[step].metrics
            if isinstance(metrics, TrainMetrics) and metrics.throughput is not None:
                values[f"{name}/tokens_per_second"] = metrics.throughput.tokens_per_second
        yield TrackedRun(
            content_id("run", {"sweep": plan.plan_id, "trial": trial.trial_id}).rpartition("-")[2][:16],
            trial.label,
            str(row["status"]),
            {
                "trial": trial.model_dump(mode="json", include={"trial_id", "method", "chain", "q", "seed"})
                | {"beta": trial.beta, "beta_over_lambda": trial.beta_over_lambda},
                "space": plan.space.model_dump(mode="json"),
                "logs": {name: store.location(logs[step]) for name, step in stages.items() if step in logs},
                "error": str(row["error"]),
            },
            {
                name: curves[step][["update", *CURVES]].dropna(axis="columns", how="all")
                for name, step in stages.items()
                if step in curves
            },
            values,
        )


def _stages(plan: Plan, trial: Trial) -> dict[str, str]:
    """Stage to training step, of a trial that trains a policy of its own; a merge has no stage of its own."""
    if "policy" not in trial.policy:
        return {}
    steps = [step for step in plan.ancestors(trial.policy["policy"]) if plan.steps[step].kind == "train"]
    names = trial.chain.replace(":", "-").split(">") if trial.kl_parameters else []
    names = ["sft"] * (len(steps) - len(names)) + names
    first = 0 if names[:1] == ["sft"] else 1
    return {f"{number}-{name}": step for number, (name, step) in enumerate(zip(names, steps, strict=True), first)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
