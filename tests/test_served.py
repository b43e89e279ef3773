"""Policies that are served elsewhere: their answers, what a refusal costs, ids, tables, what they take no part in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sacpo import export
from sacpo.errors import SacpoError, SpaceError
from sacpo.judges import call_batch
from sacpo.judges.answers import Question, answers
from sacpo.judges.call_batch import CallStats, Reply
from sacpo.judges.ledger import BudgetExceeded, QuotaExceeded
from sacpo.planning.cost_estimate import describe_judging
from sacpo.planning.plan import Plan
from sacpo.planning.planner import make_plan
from sacpo.planning.served import endpoint_of
from sacpo.results import load
from sacpo.results.load import Results
from sacpo.runs.sweep_run import check_keys
from sacpo.spaces.evaluation import Generation
from sacpo.spaces.served import ServedPolicy
from sacpo.synthetic.world import PROMPTS, extremes
from tests.commands import call, sweep_here, write_space
from tests.servers import Behaviour, Body, Fail, Policy, Say, Server, scripted
from tests.spaces import small, space

KEY = "sk-secret-9a1c77"
QUESTIONS = [Question(f"How do I cook bean {i}?") for i in range(12)]
FILTERED = Fail(400, '{"error": {"code": "content_filter", "message": "The prompt was filtered."}}')


@pytest.fixture(autouse=True)
def short_pauses_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_batch, "BACKOFF_START", 0.01)
    monkeypatch.setenv("SERVED_KEY", KEY)


def served(server: Server, **changes: Any) -> dict[str, Any]:
    """Settings of a policy behind this server."""
    calls = {"attempts": 2, "timeout": 20.0}
    return {"model": "scripted", "base_url": server.base_url, "api_key_env": "SERVED_KEY", "calls": calls, **changes}


def ask(folder: Path, server: Server, **changes: Any) -> tuple[list[Reply], CallStats]:
    """The replies to `QUESTIONS`."""
    generation = Generation(max_new_tokens=64, temperature=0.7, top_p=0.9, seed=3)
    policy = ServedPolicy.model_validate(served(server) | changes)
    writer = f"writer{len(list(folder.rglob('*.jsonl')))}"
    return answers(QUESTIONS, policy, generation, ledger=folder, run="run", writer=writer)[:2]


def counted(prompt: str) -> int:
    return int("".join(c for c in prompt if c.isdigit()))


def replying(special: dict[int, Behaviour]) -> Policy:
    """Answers every question of `QUESTIONS`, but those with these numbers as given."""
    return lambda prompt, *_: special.get(counted(prompt), Say(f"Boil it {counted(prompt)} minutes."))


def test_answers_are_asked_for_with_the_evaluations_settings_and_paid_once(tmp_path: Path) -> None:
    with scripted(replying({5: Say("Boil it for as", finish="length")})) as server:
        replies, stats = ask(tmp_path, server)
        again, stored = ask(tmp_path, server)
        assert server.calls == len(QUESTIONS)
    assert [reply.raw for reply in replies] == [reply.raw for reply in again]
    assert [i for i, reply in enumerate(replies) if reply.cut] == [5]
    assert [reply.cut for reply in replies] == [reply.cut for reply in again]
    request = server.requests[0]
    assert [message["role"] for message in request["messages"]] == ["user"]
    sent = {name: request[name] for name in ("max_tokens", "temperature", "top_p", "seed")}
    assert sent == {"max_tokens": 64, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    assert (stats.calls, stats.from_ledger, stored.calls, stored.from_ledger) == (12, 0, 0, 12)


@pytest.mark.parametrize(
    "refusal",
    [FILTERED, Say("I will", finish="content_filter"), Say("  "), Say("<think>Hm. He may</think>")],
    ids=["status", "finish reason", "empty", "thoughts alone"],
)
def test_a_refused_call_has_no_answer_and_costs_no_other_call_its_answer(refusal: Behaviour, tmp_path: Path) -> None:
    with scripted(replying({4: refusal})) as server:
        replies, _ = ask(tmp_path, server)
    assert [i for i, reply in enumerate(replies) if reply.outcome != "answer"] == [4]
    assert replies[4].refused
    assert replies[4].attempts == 1


def test_a_reply_that_broke_off_is_no_answer_and_is_asked_for_again(tmp_path: Path) -> None:
    broken = {7: Say("Boil it for", finish="abort")}
    with scripted(replying(broken)) as server:
        replies, _ = ask(tmp_path, server)
        assert [(i, r.refused, r.attempts) for i, r in enumerate(replies) if r.outcome != "answer"] == [(7, False, 2)]
        broken.clear()
        _, stats = ask(tmp_path, server)
    assert (stats.calls, stats.from_ledger) == (1, 11)


def test_refused_parameters_are_left_out_and_still_known_when_the_answers_come_from_the_store(tmp_path: Path) -> None:
    def policy(prompt: str, *_: Any) -> Behaviour:
        for name in ("temperature", "top_p", "seed"):
            if name in server.requests[-1]:
                return Fail(400, f'{{"error": {{"message": "Unsupported parameter: {name}", "param": "{name}"}}}}')
        return Say("Boil it.")

    with scripted(policy) as server:
        _, stats = ask(tmp_path, server, calls={"attempts": 2, "concurrency": 1})
        _, stored = ask(tmp_path, server)
    assert stats.left_out == stored.left_out == {"temperature", "top_p", "seed"}
    assert stored.calls == 0


def test_a_used_up_quota_and_a_limit_keep_the_paid_answers_and_the_next_run_goes_on(tmp_path: Path) -> None:
    one_at_a_time = {"attempts": 2, "concurrency": 1}
    with scripted(replying({6: Fail(402)})) as server, pytest.raises(QuotaExceeded, match="answers so far are stored"):
        ask(tmp_path, server, calls=one_at_a_time)
    limited = one_at_a_time | {"max_calls": 9}
    with scripted(replying({})) as server:
        with pytest.raises(BudgetExceeded, match=r"max_calls = 9 is reached: 9 calls for answers.*answers so far"):
            answers(
                [*QUESTIONS, *(Question(f"Is pea {i} green?") for i in range(100, 110))],
                ServedPolicy.model_validate(served(server, calls=limited)),
                Generation(max_new_tokens=64, temperature=0.7, top_p=0.9, seed=3),
                ledger=tmp_path,
                run="second",
                writer="second",
            )
        assert server.calls == 9  # the six of the first run are not paid twice
        replies, stats = ask(tmp_path / "none", server)
    assert stats.from_ledger == 0
    assert all(reply.outcome == "answer" for reply in replies)


def world_answer(prompt: str, *_: Any) -> Behaviour:
    """The most harmless answer; one prompt is filtered, and the answer to another one runs into the limit."""
    helpful, harmful = (next(text for text, category in PROMPTS if category == kind) for kind in ("benign", "risky"))
    if prompt == harmful:
        return FILTERED
    return Say(extremes(prompt, "harmlessness")[0], finish="length" if prompt == helpful else "stop")


def sweep_with(policy: Policy, copied: Path, tmp_path: Path, name: str) -> tuple[int, str, Results, Server]:
    """The small sweep with a served policy, on the steps that are done; its status, output and tables."""
    with scripted(policy) as server:
        path = write_space(small(served={"gpt": served(server)}), tmp_path)
        answer = sweep_here(path, tmp_path / name, "--store", str(copied / "store"))
    return answer.returncode, answer.stdout + answer.stderr, load(tmp_path / name), server


def test_a_served_policy_is_a_trial_beside_the_sweeps_own(copied: Path, tmp_path: Path) -> None:
    status, output, results, server = sweep_with(world_answer, copied, tmp_path, "first")
    assert status == 0, output
    assert server.calls == 2 * len(PROMPTS)  # two samples of each prompt
    assert {request["seed"] for request in server.requests} == {0, 1}
    trial = results.trials.set_index("label").loc["gpt"]
    assert (trial["method"], trial["status"], bool(trial["on_front"])) == ("served", "done", False)
    assert trial["harmlessness"] > 0.5  # the world's most harmless answers
    assert trial[["kl_to_sft", "expected_reward", "beta"]].isna().all()
    assert trial["mean_response_tokens"] == 10  # as the server counts them
    own = results.responses[results.responses["trial_id"] == trial["trial_id"]]
    missing = own[own["response"].isna()]
    assert len(missing) == 2
    assert missing["missing"].str.contains("content_filter").all()
    assert trial["finished_fraction"] == pytest.approx(1 - 2 / (2 * len(PROMPTS) - 2))
    verdicts = results.verdicts[results.verdicts["trial_id"] == trial["trial_id"]]
    undecided = verdicts[verdicts["outcome"] == "unavailable"]
    assert (
        undecided[["prompt_id", "sample"]].to_numpy().tolist() == missing[["prompt_id", "sample"]].to_numpy().tolist()
    )
    assert undecided["raw"].str.contains("gave no answer").all()
    assert undecided["score"].isna().all()
    assert "gpt" in (tmp_path / "first" / "report.html").read_text()
    assert "gpt" not in set(results.comparisons["choice"].get("trial_id", []))

    # Another address of the same policy: nothing is asked, and nothing is judged again.
    again, output, same, other = sweep_with(world_answer, copied, tmp_path, "second")
    assert again == 0, output
    assert other.calls == 0
    assert same.trials.set_index("label").loc["gpt", "harmlessness"] == trial["harmlessness"]

    refused = call(export.main, str(tmp_path / "first"), "gpt", str(tmp_path / "weights"))
    assert refused.returncode == 2
    assert "is served elsewhere" in refused.stderr
    assert "--answers alpaca_eval" in refused.stderr
    exported = call(export.main, str(tmp_path / "first"), "--answers", "arena_hard", "--out", str(tmp_path / "answers"))
    assert exported.returncode == 0, exported.stderr
    lines = (tmp_path / "answers" / "harmlessness" / "model_answer" / "gpt.jsonl").read_text().splitlines()
    assert len(lines) == own.query("criterion == 'harmlessness' and sample == 0")["response"].notna().sum()
    written = [path for folder in (tmp_path, copied) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if KEY.encode() in path.read_bytes()]


def test_an_answer_that_is_not_there_yet_fails_the_step_and_the_same_command_asks_only_for_it(
    copied: Path, tmp_path: Path
) -> None:
    late = PROMPTS[3][0]

    def shaky(prompt: str, *_: Any) -> Behaviour:
        return Fail(500) if prompt == late else world_answer(prompt)

    status, output, results, _ = sweep_with(shaky, copied, tmp_path, "again")
    assert status == 1
    trial = results.trials.set_index("label").loc["gpt"]
    assert trial["status"] == "failed"
    assert "2 of" in trial["error"]
    assert "run the same command to continue" in trial["error"]
    status, output, results, server = sweep_with(world_answer, copied, tmp_path, "again")
    assert status == 0, output
    asked = {request["messages"][0]["content"] for request in server.requests}
    refused = next(text for text, category in PROMPTS if category == "risky")
    assert late in asked
    assert asked <= {late, refused}


def test_a_reply_that_is_no_completion_is_no_answer(copied: Path, tmp_path: Path) -> None:
    status, _, results, _ = sweep_with(lambda *_: Body("<html>Welcome</html>"), copied, tmp_path, "again")
    assert status == 1
    assert "not a chat completion" in results.trials.set_index("label").loc["gpt", "error"]


def plan_with(**changes: Any) -> Plan:
    return make_plan(space(**{"served": {"gpt": {"model": "m", "api_key_env": None}}} | changes))


def answer_steps(plan: Plan) -> dict[str, str]:
    return next(trial for trial in plan.trials if trial.method == "served").generate


def test_the_id_of_answers_depends_on_what_can_change_them_alone() -> None:
    first = answer_steps(plan_with())
    here = {"base_url": "http://127.0.0.1:8000/v1", "api_key_env": "OTHER_KEY", "calls": {"attempts": 3}}
    assert answer_steps(plan_with(served={"other": {"model": "m"} | here})) == first
    assert answer_steps(plan_with(model__seed=7, evaluation__generation__batch_size=5)) == first
    for change in (
        {"served": {"gpt": {"model": "n"}}},
        {"served": {"gpt": {"model": "m", "revision": "2"}}},
        {"evaluation__generation__temperature": 0.5, "preview": None},
        {"evaluation__generation__max_new_tokens": 7},
        {"evaluation__generation__seed": 1},
    ):
        assert not set(answer_steps(plan_with(**change)).values()) & set(first.values())


def test_a_served_policy_takes_no_part_in_previews_and_races_and_is_ranked() -> None:
    racing = plan_with(preview={}, evaluation__racing=True)
    trial = next(trial for trial in racing.trials if trial.method == "served")
    assert any(other.rounds and other.likelihoods for other in racing.trials)
    assert not trial.rounds
    assert not trial.likelihoods
    plan = plan_with(evaluation__all_pairs=True)
    trial = next(trial for trial in plan.trials if trial.method == "served")
    assert trial.head_to_head
    steps = set(trial.generate.values())
    users = [step for step in plan.steps.values() if steps & set(step.parents.values())]
    assert {step.kind for step in users} == {"judge"}
    assert all(endpoint_of(plan.steps[step].payload) is plan.space.served["gpt"] for step in steps)


def test_names_and_models_that_would_be_taken_for_another_trial_are_refused() -> None:
    with pytest.raises(SpaceError, match=r"served\.sft: is the name of another trial"):
        space(served={"sft": {"model": "m"}})
    with pytest.raises(SpaceError, match=r"served\.b: has the model and the revision of served\.a"):
        space(served={"a": {"model": "m"}, "b": {"model": "m", "base_url": "http://elsewhere/v1"}})
    with pytest.raises(SpaceError, match=r"served\.a\.base_url.*must begin with http"):
        space(served={"a": {"model": "m", "base_url": "elsewhere"}})


def test_a_missing_key_is_named_before_any_work_and_the_plan_says_what_answers_cost() -> None:
    priced = {"model": "m", "api_key_env": "NO_SUCH_KEY", "calls": {"price_prompt": 1.0, "price_completion": 10.0}}
    plan = plan_with(served={"gpt": priced})
    with pytest.raises(SacpoError, match=r"served\.gpt\.api_key_env: the environment variable NO_SUCH_KEY is not set"):
        check_keys(plan.space)
    prompts = sum(len(prompts) for prompts in plan.prompts.values())
    (line,) = (line for line in describe_judging(plan, lambda _: False) if line.startswith("served.gpt"))
    assert line.startswith(f"served.gpt: m, at most {2 * prompts} calls, at most about ")
