"""Records to tables: what a sweep's results folder holds, and how a notebook reads it.

Every number comes from a step's record or output in the store; nothing here remembers anything of its own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sacpo.results.comparisons import compare
from sacpo.synthetic import world as synthetic
from sacpo.errors import SacpoError, StoreError
from sacpo.spaces.evaluation import CRITERIA
from sacpo.statistics.pareto import on_front
from sacpo.statistics.win_rate import Estimate
from sacpo.store.results_location import ResultsLocation
from sacpo.spaces.loading import parse_space
from sacpo.planning.plan import Plan, Trial
from sacpo.planning.planner import make_plan
from sacpo.spaces.space import parse_chain
from sacpo.execution.artifacts import RESPONSES, VERDICTS, read_probabilities
from sacpo.store.backends import Folder
from sacpo.store.step_store import CorruptOutput, Record, Store
from sacpo.results.win_rates import baseline_columns, criterion_columns, estimate_columns, scored

_LAMBDAS = np.concatenate([[0.0], np.geomspace(0.02, 8.0, 60)])


@dataclass(frozen=True)
class Results:
    """A sweep's results.

    Attributes:
        sweep: The content of `sweep.json`.
        trials: One row a trial (README, Results).
        steps: One row a step.
        responses: One row an answer.
        verdicts: One row a judge call.
        exact: The synthetic world's exact frontier, one row a beta and lambda; none for other spaces.
        comparisons: The tables over all trials together, by name (`sacpo.results.comparisons`); empty while a sweep runs.
    """

    sweep: dict[str, Any]
    trials: pd.DataFrame
    steps: pd.DataFrame
    responses: pd.DataFrame
    verdicts: pd.DataFrame
    exact: pd.DataFrame | None
    comparisons: dict[str, pd.DataFrame] = field(default_factory=dict)


def load(folder: str | Path) -> Results:
    """Read a results folder, at a path or an s3:// URI.

    Raises:
        SacpoError: it is none.
    """
    folder = ResultsLocation(folder).fetch()
    sweep = read_sweep(folder)
    try:
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in _TABLES}
    except FileNotFoundError as error:
        raise SacpoError(f"{folder} is not a results folder: {Path(error.filename).name} is missing") from None
    more = {name: pd.read_parquet(path) for name in _MORE if (path := folder / f"{name}.parquet").exists()}
    return Results(sweep, **tables, exact=more.pop("exact", None), comparisons=more)


def read_sweep(folder: Path) -> dict[str, Any]:
    """What `sweep.json` holds.

    Raises:
        SacpoError: the folder has none.
    """
    try:
        sweep: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    except FileNotFoundError:
        raise SacpoError(f"{folder} is not a results folder: sweep.json is missing") from None
    return sweep


def refresh(folder: str | Path) -> Results:
    """Rebuild a results folder's tables from the store that its sweep named, and write them.

    Raises:
        SacpoError: it is no results folder.
        StoreError: the store is gone.
    """
    folder = Path(folder)
    sweep = read_sweep(folder)
    store = Store(sweep["store"])
    if not store.exists():
        raise StoreError(f"the store {store.uri} of this sweep is gone")
    results = complete(stored_plan(sweep), store, sweep)
    write(results, folder)
    return results


def stored_plan(sweep: dict[str, Any]) -> Plan:
    """The plan of a sweep, with the judges that `python -m sacpo.judge` added to it."""
    space = copy.deepcopy(sweep["space"])
    for name, judges in sweep.get("judged_again", {}).items():
        for criterion, judge in judges.items():
            space["evaluation"][criterion]["panel"][name] = judge
    return make_plan(parse_space(space), canaries=sweep["canaries"] == "run")


_TABLES = ("trials", "steps", "responses", "verdicts")
_MORE = ("exact", "differences", "categories", "length", "seeds", "panel", "agreement", "ranking")


def write(results: Results, folder: Path) -> None:
    """Write `sweep.json` and the tables, each atomically.

    Raises:
        StoreError: one cannot be written.
    """
    files = Folder(folder)
    files.write("sweep.json", json.dumps(results.sweep, indent=1).encode())
    for name in _TABLES:
        files.write(f"{name}.parquet", getattr(results, name).to_parquet(index=False))
    files.write("trials.csv", results.trials.to_csv(index=False).encode())
    more = {"exact": results.exact, **results.comparisons}
    for name in _MORE:
        table = more.get(name)
        if table is not None and len(table):
            files.write(f"{name}.parquet", table.to_parquet(index=False))
        elif results.comparisons:  # an earlier sweep's table in this folder is not this one's
            files.remove(f"{name}.parquet")


def collect(plan: Plan, store: Store, sweep: dict[str, Any], records: Mapping[str, Record] | None = None) -> Results:
    """Build the tables from what is in the store now, `records` if they were read; what is not there yet is pending."""
    outputs = _Outputs(plan, store, store.records(plan.steps) if records is None else records, sweep["run"])
    responses = pd.concat([_responses(trial, outputs) for trial in plan.trials], ignore_index=True)
    verdicts = pd.concat([_verdicts(trial, plan, outputs) for trial in plan.trials], ignore_index=True)
    main = verdicts[verdicts["panel"].eq("") & verdicts["baseline_id"].eq(plan.baseline.trial_id)]
    estimated = {c: estimate_columns(scored(main[main["criterion"] == c])) for c in plan.prompts}
    rows = [_trial_row(trial, plan, outputs, responses, main, estimated) for trial in plan.trials]
    trials = pd.DataFrame(rows)
    policies = (trials["status"] == "done") & (trials["method"] != "sentinel")
    points = trials[list(CRITERIA)].where(policies).to_numpy(dtype=float)
    trials["on_front"] = on_front(points)
    steps = pd.DataFrame([_step_row(step_id, plan, outputs) for step_id in plan.steps])
    return Results(sweep, trials, steps, responses, verdicts, _exact_frontier(plan, outputs))


def complete(plan: Plan, store: Store, sweep: dict[str, Any]) -> Results:
    """The tables, and those over all trials together."""
    found = collect(plan, store, sweep)
    tables = compare(plan, found.trials, found.responses, found.verdicts)
    return replace(found, comparisons=tables)


class _Outputs:
    """Records, attempts and verified outputs of one look at the store, each read once."""

    def __init__(self, plan: Plan, store: Store, records: Mapping[str, Record], run: str) -> None:
        self.plan, self.store, self.run = plan, store, run
        self._tries: dict[str, tuple[int, dict[str, Any] | None]] = {}
        self.records: dict[str, Record | None] = dict.fromkeys(plan.steps) | dict(records)
        baseline = plan.baseline.probabilities
        self.sft = self.probabilities(baseline) if baseline is not None else None

    def table(self, step_id: str | None, name: str) -> pd.DataFrame:
        if step_id is None or self.records[step_id] is None:
            return pd.DataFrame()
        try:
            return pd.read_parquet(self.store.output(step_id, self.records[step_id]) / name)
        except CorruptOutput:
            self.records[step_id] = None
            return pd.DataFrame()

    def tried(self, step_id: str) -> tuple[int, dict[str, Any] | None]:
        """How many attempts were made at a step that is not done, and how the last one failed, if in this run."""
        if any(self.records[parent] is None for parent in self.plan.steps[step_id].parents.values()):
            return 0, None  # nobody can have tried it
        if step_id not in self._tries:
            self._tries[step_id] = self.store.tried(step_id, self.run)
        return self._tries[step_id]

    def probabilities(self, step_id: str) -> synthetic.Array | None:
        if self.records[step_id] is None:
            return None
        try:
            return read_probabilities(self.store.output(step_id, self.records[step_id]))
        except CorruptOutput:
            self.records[step_id] = None
            return None


def _responses(trial: Trial, outputs: _Outputs) -> pd.DataFrame:
    parts = [outputs.table(step, RESPONSES).assign(criterion=criterion) for criterion, step in trial.generate.items()]
    columns = ["criterion", "prompt_id", "category", "prompt", "sample", "response", "tokens", "finished"]
    return _tidy(pd.concat(parts, ignore_index=True), {"trial_id": trial.trial_id}, columns)


def _verdicts(trial: Trial, plan: Plan, outputs: _Outputs) -> pd.DataFrame:
    parts = []
    for name, criterion, step in trial.judge_steps():
        judge = plan.steps[step].payload["judge"]
        against = name if name in trial.head_to_head else plan.baseline.trial_id
        keys = {"criterion": criterion, "baseline_id": against, "panel": "" if name in trial.head_to_head else name}
        keys |= {"judge": judge.get("model", judge["kind"]), "judge_revision": judge.get("revision", "")}
        parts.append(outputs.table(step, VERDICTS).assign(**keys))
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return _tidy(table, {"trial_id": trial.trial_id}, _VERDICT_COLUMNS)


_VERDICT_COLUMNS = [
    *("baseline_id", "criterion", "prompt_id", "category", "sample", "order", "repeat", "outcome", "raw", "p_win"),
    *("judge", "judge_revision", "panel", "latency", "attempts", "prompt_tokens", "completion_tokens"),
]


def _tidy(table: pd.DataFrame, keys: dict[str, str], columns: list[str]) -> pd.DataFrame:
    return table.reindex(columns=columns).assign(**keys)[[*keys, *columns]]


def _trial_row(
    trial: Trial,
    plan: Plan,
    outputs: _Outputs,
    responses: pd.DataFrame,
    verdicts: pd.DataFrame,
    estimated: dict[str, dict[Any, Estimate]],
) -> dict[str, Any]:
    status, error = _status(trial, plan, outputs)
    beta, realigned = trial.beta, trial.beta_over_lambda
    row: dict[str, Any] = {
        "trial_id": trial.trial_id,
        "label": trial.label,
        "method": trial.method,
        "chain": trial.chain,
        "beta": _number(beta),
        "beta_over_lambda": _number(realigned),
        "lambda": beta / realigned if beta is not None and realigned is not None else float("nan"),
        "kl_parameters": json.dumps(trial.kl_parameters),
        "q": _number(trial.q),
        "seed": pd.NA if trial.seed is None else trial.seed,
        "status": status,
        "error": error,
    }
    mine = verdicts[verdicts["trial_id"] == trial.trial_id]
    for criterion in plan.prompts:
        if trial is plan.baseline:
            row |= baseline_columns(criterion, len(outputs.table(trial.generate[criterion], RESPONSES)))
            continue
        estimate = estimated[criterion].get(trial.trial_id)
        row |= criterion_columns(criterion, mine[mine["criterion"] == criterion], estimate)
        accuracy = _judge_accuracy(trial, plan, outputs, criterion)
        row |= {} if accuracy is None else {f"{criterion}_judge_accuracy": accuracy}
        coverage = row[f"{criterion}_coverage"]
        if row["status"] == "done" and coverage < plan.space.evaluation.min_coverage:
            row |= {"status": "failed", "error": _too_little(plan, criterion, coverage)}
    if row["status"] == "failed":  # a failure is never a number
        row |= {name: float("nan") for c in plan.prompts for name in (c, f"{c}_low", f"{c}_high")}
    tokens = responses.loc[responses["trial_id"] == trial.trial_id, "tokens"]
    row["mean_response_tokens"] = float(tokens.mean()) if len(tokens) else float("nan")
    row["kl_to_sft"] = _estimated_kl(trial, plan, outputs)
    row |= _exact_columns(trial, plan, outputs)
    records = [r for step in _needed(trial, plan) if (r := outputs.records[step]) is not None]
    row["seconds"] = sum(record["seconds"] for record in records)
    row["device_seconds"] = sum(record["device_seconds"] for record in records)
    return row


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _needed(trial: Trial, plan: Plan) -> list[str]:
    """Every step that this trial's row rests on, shared ones included."""
    return list(dict.fromkeys(s for asked in plan.required_steps(trial) for s in plan.ancestors(asked)))


def _status(trial: Trial, plan: Plan, outputs: _Outputs) -> tuple[str, str]:
    if all(outputs.records[step] is not None for step in trial.steps):
        return "done", ""
    for step in _needed(trial, plan):
        failure = outputs.tried(step)[1] if outputs.records[step] is None else None
        if failure is not None:
            log = f" (log: {failure['log']})" if failure["log"] else ""
            return "failed", f"{plan.steps[step].label}: {failure['error']}{log}"
    return "pending", ""


def _too_little(plan: Plan, criterion: str, coverage: float) -> str:
    return (
        f"judge {criterion}: only {coverage:.1%} of the verdicts were decided, less than evaluation.min_coverage "
        f"({plan.space.evaluation.min_coverage:.1%}); the same command again asks for the missing ones"
    )


def _judge_accuracy(trial: Trial, plan: Plan, outputs: _Outputs, criterion: str) -> float | None:
    model = plan.steps[trial.judge[criterion]].parents.get("model")
    record = outputs.records[model] if model is not None else None
    return None if record is None else float(record["metrics"]["held_out_accuracy"])


def _estimated_kl(trial: Trial, plan: Plan, outputs: _Outputs) -> float:
    """KL to the SFT policy, estimated on the trial's own samples; not a number where they were not plain samples."""
    if trial is plan.baseline:
        return 0.0
    records = [outputs.records[step] for step in trial.generate.values()]
    values = [record["metrics"]["kl_to_sft"] for record in records if record is not None]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _exact_columns(trial: Trial, plan: Plan, outputs: _Outputs) -> dict[str, float]:
    """The synthetic world's exact numbers of a trial; nothing for other spaces."""
    if not plan.space.synthetic:
        return {}
    policy = outputs.probabilities(trial.probabilities) if trial.probabilities is not None else None
    if policy is None or outputs.sft is None:
        names = ("expected_reward", "expected_safety", "kl_to_sft", "support_mass", "share_of_optimum")
        return dict.fromkeys(names, float("nan"))
    row = dict(vars(synthetic.measure(policy, outputs.sft)))
    weights = objective_weights(trial)
    share = synthetic.share_of_optimum(policy, outputs.sft, *weights) if weights is not None else float("nan")
    return row | {"share_of_optimum": share}


def objective_weights(trial: Trial) -> tuple[float, float] | None:
    """(w_r, w_g) of the objective w_r E[r] + w_g E[g] - KL whose exact optimum the trial's chain aims at.

    Each stage adds 1 / its KL parameter to its objective (paper, Theorems 1 and 4), so helpfulness first with beta and
    beta/lambda aims at (1/beta, lambda/beta), and a single stage at its own objective alone. None for the SFT policy
    and for merges, which aim at no such optimum.
    """
    if not trial.kl_parameters or trial.q is not None:
        return None
    weights = dict.fromkeys(CRITERIA, 0.0)
    for (_, objective), parameter in zip(parse_chain(trial.chain), trial.kl_parameters, strict=True):
        if objective not in weights:
            return None
        weights[objective] += 1.0 / parameter
    return weights["helpfulness"], weights["harmlessness"]


def _exact_frontier(plan: Plan, outputs: _Outputs) -> pd.DataFrame | None:
    """E[r], E[g] and KL of the exact optimum over a range of lambda, for each beta of a chain that starts with r."""
    if outputs.sft is None:
        return None
    betas = {t.beta for t in plan.trials if t.chain.partition(">")[0].endswith(":helpfulness") and t.beta is not None}
    rows = []
    for beta in sorted(betas):
        for lagrangian in _LAMBDAS:
            best = synthetic.optimum(outputs.sft, 1 / beta, lagrangian / beta)
            exact = synthetic.measure(best, outputs.sft)
            rows.append({"beta": beta, "lambda": float(lagrangian), **vars(exact)})
    return pd.DataFrame(rows).drop(columns="support_mass") if rows else None


def _step_row(step_id: str, plan: Plan, outputs: _Outputs) -> dict[str, Any]:
    step, record = plan.steps[step_id], outputs.records[step_id]
    attempts, failure = outputs.tried(step_id) if record is None else (record["attempts"], None)
    again = attempts > (0 if record is None else 1)
    status = "done" if record is not None else "failed" if failure else "pending"
    values = record or {}
    return {
        "step_id": step_id,
        "kind": step.kind,
        "label": step.label,
        "parents": json.dumps(step.parents),
        "status": status,
        "error": failure["error"] if failure else "",
        "attempts": attempts,
        "reused": record is not None and record["run"] != outputs.run,
        "seconds": values.get("seconds", float("nan")),
        "device_seconds": values.get("device_seconds", float("nan")),
        "workers": values.get("workers", 0),
        "config": json.dumps(step.payload),
        "effective": json.dumps(values.get("effective", {})),
        "metrics": json.dumps(values.get("metrics", {})),
        "retracted": json.dumps(outputs.store.retractions(step_id) if again else []),
        "started_at": values.get("started_at", float("nan")),
        "first_update_at": values.get("first_update_at", float("nan")),
        "ended": values.get("ended", float("nan")),
    }
