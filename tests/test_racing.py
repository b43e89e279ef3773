"""Racing: prompts in rounds, which policies are stopped, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sacpo.errors import SpaceError, StepError
from sacpo.execution.artifacts import RACE, RESPONSES, VERDICTS, read_stopped
from sacpo.execution.in_process import InProcessRun, carry_out
from sacpo.execution.job import Job
from sacpo.execution.runner import Runner
from sacpo.planning.cost_estimate import describe_judging
from sacpo.planning.judge_payloads import JudgePayload, RacePayload, Round, SyntheticScale
from sacpo.planning.metrics import JudgeMetrics, RaceMetrics
from sacpo.planning.plan import Plan, Step, read_plan
from sacpo.planning.planner import make_plan
from sacpo.planning.prompt_parts import certifies, prompts_of_part
from sacpo.planning.racing import LOOKS, Role, prompts_role
from sacpo.planning.records import StepResult
from sacpo.planning.schedule import Pool, Schedule, ScheduledStep
from sacpo.results.collect import collect
from sacpo.results.front import candidates
from sacpo.results.stopped import stopped_lines
from sacpo.results.sweep_facts import SweepFacts
from sacpo.spaces.constraints import Constraint
from sacpo.spaces.evaluation import GoldJudge
from sacpo.statistics.racing import FEWEST_PROMPTS, Judged, choice_chances, front_chances, to_stop
from sacpo.store.step_store import Store
from sacpo.synthetic.world import PROMPTS
from tests.jobs import empty_result, job
from tests.spaces import space

AXES = ("helpfulness", "harmlessness")
CONSTRAINT = [{"criterion": "harmlessness", "at_least": 0.6}]
RANGE = {"method": "optuna", "beta": 2.0, "beta_over_lambda": [0.5, 5.0]}
CATEGORIES = {f"prompt-{i}": "ab"[i % 5 == 0] for i in range(100)}


def racing_plan(**changes: Any) -> Plan:
    return make_plan(space(evaluation__racing=True, preview=None, **changes))


def judged(*rates: float, prompts: int = 40, remaining: int = 80, certifying: int = 0) -> Judged:
    """Wins and losses at these rates, independent of each other."""
    scores = np.random.default_rng(1).permuted(np.arange(prompts)[:, None] < np.array(rates) * prompts, axis=0)
    return Judged(scores.astype(float), remaining, certifying)


# ---------------------------------------------------------------------------------------------------------- the rounds


@pytest.mark.parametrize("constraint", [[], CONSTRAINT])
def test_the_rounds_of_a_trial_ask_every_prompt_once_whatever_their_order(constraint: list[Any]) -> None:
    plan = racing_plan(constraint=constraint)
    steps = [step for name, c, step in plan.trials[1].judge_steps() if (name, c) == ("", AXES[0])]
    payloads = [payload for step in steps if isinstance(payload := plan.steps[step].payload, JudgePayload)]
    rounds = [payload.round for payload in payloads if payload.round is not None]
    assert len(rounds) == len(LOOKS) + 1 + len(constraint)
    asked = [round_.of(CATEGORIES) for round_ in rounds]
    assert asked == [round_.of(dict(reversed(CATEGORIES.items()))) for round_ in rounds]
    assert sorted(prompt for prompts in asked for prompt in prompts) == sorted(CATEGORIES)
    if constraint:
        assert set(asked[-1]) == {prompt for prompt in CATEGORIES if certifies(prompt)}


def test_every_beginning_of_the_order_has_the_mixture_of_categories() -> None:
    order = prompts_of_part(CATEGORIES, "all")
    for n in (10, 25, 50):
        assert sum(CATEGORIES[prompt] == "b" for prompt in order[:n]) == n / 5


def test_a_sweep_that_does_not_race_keeps_its_ids_and_one_that_does_reads_back() -> None:
    plain, racing = make_plan(space(preview=None)), racing_plan()
    assert {step.kind for step in plain.steps.values()} == {step.kind for step in racing.steps.values()} - {"race"}
    assert [t.generate for t in plain.trials] == [t.generate for t in racing.trials]
    sentinels = [t.judge for t in plain.trials if t.method == "sentinel"]
    assert sentinels == [t.judge for t in racing.trials if t.method == "sentinel"]  # judged in full
    assert plain.baseline.judge == racing.baseline.judge
    assert not any(trial.rounds for trial in plain.trials)
    assert read_plan(racing.to_json().encode(), "plan.json") == racing


def test_a_race_belongs_to_all_trials_and_adds_nothing_to_what_one_depends_on() -> None:
    plan = racing_plan()
    first, second = plan.trials[1:3]
    last = first.rounds[""][AXES[0]][-1]
    assert any(plan.steps[step].kind == "race" for step in plan.ancestors(last))
    assert not set(plan.ancestors(last)) & set(second.generate.values())


def test_the_calls_of_a_race_are_at_most_those_of_the_full_judging() -> None:
    judge = {"kind": "llm", "model": "m", "api_key_env": None}
    llm = {"evaluation__helpfulness__judge": judge}
    lines = [
        describe_judging(make_plan(space(**llm, **more)), lambda _: False)
        for more in ({}, {"evaluation__racing": True})
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"evaluation__all_pairs": True}, "evaluation.all_pairs"),
        ({"search": {"trainings": 4, "chains": ["dpo:helpfulness>dpo:harmlessness"], **RANGE}}, "search"),
    ],
)
def test_racing_is_refused_beside_settings_that_need_every_verdict(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(SpaceError, match=f"evaluation.racing: is true, but {named}"):
        racing_plan(**changes)


# --------------------------------------------------------------------------------------------------------- the chances


def test_what_lies_well_inside_the_front_has_no_chance_left() -> None:
    chances = front_chances(judged(0.8, 0.5, 0.3), judged(0.5, 0.8, 0.2))
    assert (chances[:2] > 0.9).all()
    assert chances[2] < 0.001
    none_left = front_chances(judged(0.8, 0.75, remaining=0), judged(0.6, 0.575, remaining=0))
    assert none_left[0] == 1  # nothing is predicted
    assert none_left[1] < 0.001


def test_the_expected_number_of_policies_stopped_wrongly_is_bounded() -> None:
    chances = np.array([0.5, 0.01, 0.02, 0.001])
    stopped = {budget: to_stop(chances, budget).tolist() for budget in (0.0, 0.012, 0.03, 0.6)}
    assert stopped[0.0] == [False] * 4
    assert stopped[0.012] == [False, True, False, True]
    assert stopped[0.03] == [False, True, False, True]
    assert stopped[0.6] == [True] * 4


def test_the_baseline_takes_part_in_the_race() -> None:
    alone = front_chances(judged(0.1, prompts=80), judged(0.1, prompts=80))
    assert alone[0] < 0.001


def test_few_prompts_and_constant_scores_decide_little() -> None:
    few = FEWEST_PROMPTS - 1
    assert front_chances(judged(1.0, 0.0, prompts=few), judged(1.0, 0.0, prompts=few)).tolist() == [1, 1]
    close = Judged(np.array([[1.0, 1.0]] * few + [[1.0, 0.0]]), 100)
    assert front_chances(close, close)[1] > 0.05
    same = Judged(np.ones((20, 2)), 100)
    assert (front_chances(same, same) > 0.1).all()


def test_a_choice_needs_a_place_on_the_front_and_the_constraint() -> None:
    gain, safety = judged(0.9, 0.7, 0.5, certifying=60), judged(0.2, 0.8, 0.65, certifying=60)
    chances = choice_chances(gain, [safety], [0.6])
    assert chances[0] < 0.002  # violates the constraint
    assert chances[1] > 0.5
    assert chances[2] < 0.1  # the second is better on both


# ------------------------------------------------------------------------------------------------------------ the step

VERDICTS_OF = {"good": (0.8, 0.5), "safe": (0.5, 0.8), "inside": (0.3, 0.2), "undecided": (0.9, 0.9), "failed": (1, 1)}


def race_job(folder: Path, payload: RacePayload, missing: tuple[str, ...] = ("failed",), **parents: Path) -> Job[Any]:
    """A race after 40 of 120 prompts; the steps of the missing trials have failed."""
    ids = [f"prompt-{i}" for i in range(120)]
    roles: dict[str, Path] = dict(parents)
    everyone: dict[str, str] = {role: role for role in parents}
    for axis, criterion in enumerate(AXES):
        roles[prompts_role(criterion)] = folder / prompts_role(criterion)
        roles[prompts_role(criterion)].mkdir(parents=True)
        table = pd.DataFrame({"prompt_id": ids, "category": ""})
        table.to_parquet(roles[prompts_role(criterion)] / RESPONSES)
        scores = judged(*(rates[axis] for rates in VERDICTS_OF.values())).means
        for trial, column in zip(VERDICTS_OF, scores.T, strict=True):
            role = str(Role(trial, criterion, 0))
            everyone[role] = role
            if trial in missing:
                continue
            outcome = np.where(column > 0, "win", "loss").astype(object)
            if trial == "undecided":
                outcome[:10] = "unavailable"
            score = pd.Series(outcome).map({"win": 1.0, "loss": 0.0})
            roles[role] = folder / role
            roles[role].mkdir()
            table = pd.DataFrame({"prompt_id": ids[:40], "outcome": outcome, "score": score, "raw": "0 0"})
            table.to_parquet(roles[role] / VERDICTS)
    made = job(folder / "out", "race", payload, roles)
    object.__setattr__(made, "step", made.step.model_copy(update={"parents": everyone}))
    return made


RACE_FOR_FRONT = RacePayload(criteria=AXES, part="all", most_lost=0.002, min_coverage=0.9)


def test_a_race_stops_what_has_no_chance_and_compares_no_failed_trial(tmp_path: Path) -> None:
    made = race_job(tmp_path, RACE_FOR_FRONT)
    result = carry_out(made)
    assert result.metrics == RaceMetrics(compared=3, stopped=1)
    assert result.metrics.remark == "1 of 3 policies judged no further"
    assert list(read_stopped(made.folder)) == ["inside"]  # with `undecided` or `failed` in it, no other would be left
    assert set(json.loads((made.folder / RACE).read_text())["chances"]) == {"good", "safe", "inside"}


def test_a_race_keeps_who_was_stopped_before_out_of_it(tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    (before / RACE).write_text(json.dumps({"stopped": {"good": 0.0}}))
    made = race_job(tmp_path, RACE_FOR_FRONT, race=before)
    assert carry_out(made).metrics == RaceMetrics(compared=2, stopped=1)
    assert set(read_stopped(made.folder)) == {"good", "inside"}


def test_a_race_for_the_choice_stops_what_violates_the_constraint(tmp_path: Path) -> None:
    bound = Constraint(criterion="harmlessness", at_least=0.75)
    payload = RACE_FOR_FRONT.model_copy(update={"constraints": (bound,), "part": "choosing", "most_lost": 0.02})
    made = race_job(tmp_path, payload)
    carry_out(made)
    assert "safe" not in read_stopped(made.folder)
    assert {"good", "inside"} == set(read_stopped(made.folder))


def test_a_judge_step_of_a_stopped_policy_asks_nothing(tmp_path: Path) -> None:
    rows = [{"prompt_id": p, "category": "", "sample": 0, "prompt": PROMPTS[0][0], "response": ""} for p in CATEGORIES]
    for side in ("answers", "baseline", "race"):
        (tmp_path / side).mkdir()
        pd.DataFrame(rows).to_parquet(tmp_path / side / RESPONSES)
    (tmp_path / "race" / RACE).write_text(json.dumps({"stopped": {"inside": 0.0}}))
    for trial, asked, not_asked in (("inside", 0, 25), ("good", 25, 0)):
        payload = JudgePayload(
            criterion="helpfulness",
            judge=GoldJudge(kind="gold"),
            inputs=SyntheticScale(world=0),
            round=Round(trial=trial, part="all", first=0.5, last=0.75),
        )
        parents = {side: tmp_path / side for side in ("answers", "baseline", "race")}
        made = job(tmp_path / trial, "judge", payload, parents)
        object.__setattr__(made, "step", made.step.model_copy(update={"parents": {s: s for s in parents}}))
        metrics = carry_out(made).metrics
        assert isinstance(metrics, JudgeMetrics)
        assert (metrics.verdicts, metrics.not_asked) == (asked, not_asked)
        assert len(pd.read_parquet(made.folder / VERDICTS)) == asked


# ----------------------------------------------------------------------------------------------------------- the sweep


def test_a_step_that_tolerates_failures_is_carried_out_without_its_failed_parents() -> None:
    steps = {
        "failed": ScheduledStep((), 0, 1.0),
        "done": ScheduledStep((), 0, 1.0),
        "race": ScheduledStep(("failed", "done"), 0, 1.0, frozenset({"failed", "done"})),
        "after": ScheduledStep(("race", "done"), 0, 1.0),
    }
    schedule = Schedule(steps, steps, set(), 1, 2)
    assert {schedule.pop_ready(Pool.DRIVER) for _ in range(2)} == {"failed", "done"}
    schedule.finish("failed", succeeded=False)
    assert schedule.pop_ready(Pool.DRIVER) is None  # the other parent may still succeed
    schedule.finish("done", succeeded=True)
    assert schedule.pop_ready(Pool.DRIVER) == "race"


class Racing:
    """An executor without models: every race stops one trial, and one trial's answers fail."""

    def __init__(self, stopped: str, failing: str) -> None:
        self.stopped, self.failing = stopped, failing
        self.races: list[int] = []

    def __call__(self, made: Job[Any]) -> StepResult:
        step: Step = made.step
        result = empty_result(step.kind)
        if step.id == self.failing:
            raise StepError("no answers")
        if step.kind == "race":
            self.races.append(len(made.parents))
            (made.folder / RACE).write_text(json.dumps({"stopped": {self.stopped: 0.0}}))
        elif step.kind == "generate":
            columns = ["prompt_id", "category", "prompt", "sample", "response", "tokens", "finished"]
            pd.DataFrame(columns=columns).to_parquet(made.folder / RESPONSES)
        elif step.kind == "judge":
            table = pd.DataFrame({"prompt_id": ["1"], "category": "", "sample": 0, "outcome": "win", "score": 1.0})
            is_stopped = "race" in made.parents and made.payload.round.trial == self.stopped
            table.iloc[: 0 if is_stopped else 1].to_parquet(made.folder / VERDICTS)
            result = result.model_copy(
                update={"metrics": result.metrics.model_copy(update={"not_asked": int(is_stopped)})}
            )
        return result


def test_a_sweep_goes_on_without_a_failed_trial_and_marks_what_was_stopped(tmp_path: Path) -> None:
    plan, store = racing_plan(), Store(tmp_path)
    stopped, failing = plan.trials[2], plan.trials[3]
    executor = Racing(stopped.trial_id, failing.generate[AXES[0]])
    facts = SweepFacts.of(plan, "store", None)
    targets = [step for trial in plan.trials for step in plan.target_steps(trial)]
    run = InProcessRun(Runner(plan, store, "run", executor), targets)
    assert run.run() == {}
    whole = max(len(step.parents) for step in plan.steps.values() if step.kind == "race")
    assert len(executor.races) == len(LOOKS)
    assert max(executor.races) == whole - len(LOOKS)  # without the steps of the failed trial
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sacpo.results.trial_columns.exact_columns", lambda *_: {})
        patch.setattr("sacpo.results.collect.exact_frontier", lambda *_: None)
        patch.setattr("sacpo.results.stored_outputs.StoredOutputs.probabilities", lambda *_: None)
        trials = collect(plan, store, facts, failures_of=["run"]).trials.set_index("trial_id")
    assert trials.loc[failing.trial_id, "status"] == "failed"
    assert "no answers" in trials.loc[failing.trial_id, "error"]
    assert (trials.drop(failing.trial_id)["status"] == "done").all()
    assert not trials.loc[stopped.trial_id, "on_front"]
    assert list(trials.index[trials["stopped"] != ""]) == [stopped.trial_id]
    assert not candidates(trials)[stopped.trial_id]
    (line,) = stopped_lines(trials)
    assert line.startswith(f"{stopped.label}: could no longer reach the front; judged on 1 of 12 helpfulness prompts")
