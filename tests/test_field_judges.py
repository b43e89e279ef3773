"""Judges as they behave in the field: refusals of single calls, refused parameters, quotas, thoughts, cut prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import LlamaForSequenceClassification

from sacpo.errors import StepError
from sacpo.execution.artifacts import VERDICTS
from sacpo.judges import call_batch, scalar
from sacpo.judges.call_batch import CallStats, Reply
from sacpo.judges.ledger import QuotaExceeded
from sacpo.judges.refusals import Refusal, read_error
from sacpo.judges.thoughts import without_thoughts
from sacpo.judges.truncation import text_size
from sacpo.judges.verdicts import Verdict
from sacpo.planning.metrics import CanaryMetrics
from sacpo.results import load
from sacpo.statistics.calibration import SMALLEST_SAMPLE, calibrate
from sacpo.statistics.win_rate import win_rate
from sacpo.steps import canary
from tests.chain_models import chain_model, chain_tokenizer, save, template
from tests.servers import NONCE, Behaviour, Body, Fail, Policy, Say, completion, scripted, verdict
from tests.test_assessment import canary_job
from tests.test_judges import HONEST, PAIRS, always, ask, honest, judge, outcomes
from tests.test_judging import chance, gold, judge_command, llm_judge

FILTERED = '{"error": {"message": "The response was filtered", "code": "content_filter", "param": "prompt"}}'
TOO_LONG = '{"error": {"message": "the context has 2048 tokens, the request 2100", "param": "max_tokens"}}'
REQUEST = {
    "messages": [{"role": "system", "content": "x"}],
    "temperature": 0.0,
    "max_tokens": 64,
    "seed": 1,
    "response_format": {},
}


@pytest.fixture(autouse=True)
def short_pauses_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_batch, "BACKOFF_START", 0.01)
    monkeypatch.setenv("JUDGE_KEY", "sk-another-secret")


def reply_body(finish: str = "stop", usage: Any = None, **message: Any) -> Body:
    """A chat completion with any message."""
    body = completion("", finish)
    body["choices"][0]["message"] = {"role": "assistant", **message}
    return Body(json.dumps(body | ({"usage": usage} if usage is not None else {})))


def one_odd(behaviour: Behaviour) -> Policy:
    """A policy that treats the first pair differently."""

    def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        return behaviour if prompt == PAIRS[0].prompt else Say(verdict(honest(prompt, first, second)))

    return policy


ITEM_REFUSALS: dict[str, Behaviour] = {
    "filter": Fail(400, FILTERED),
    "context": Fail(400, TOO_LONG),
    "repetition": Fail(400, '{"error": {"message": "an issue with repetitive patterns in your prompt"}}'),
    "moderation": Fail(403, '{"error": {"message": "Your input was flagged", "metadata": {"reasons": ["x"]}}}'),
    "payload": Fail(413, "too large"),
    "filter with status 429": Fail(429, FILTERED),
    "filter with status 500": Fail(500, FILTERED),
    "error in a reply": Body(json.dumps({"error": {"code": 400, "message": "content_filter: blocked"}})),
    "finish reason": reply_body("content_filter", content="I think"),
    "refusal field": reply_body(content=None, refusal="I cannot look at this."),
    "refusal part": reply_body(content=[{"type": "refusal", "refusal": "no"}]),
    "unknown words": Fail(422, '{"error": {"message": "no"}}'),
}


@pytest.mark.parametrize("kind", ITEM_REFUSALS)
def test_the_refusal_of_one_call_is_final_and_concerns_no_other_call(kind: str, tmp_path: Path) -> None:
    with scripted(one_odd(ITEM_REFUSALS[kind])) as server:
        replies, stats = ask(tmp_path, judge(server, concurrency=1 if kind == "unknown words" else 4))
        assert outcomes(replies) == ["unavailable", *HONEST[1:]]
        assert [reply.refused for reply in replies] == [True, *[False] * 11]
        assert replies[0].attempts <= 2, "an attempt without the reply format, and no retry"
        assert server.calls == stats.calls <= 13


def test_settings_that_every_call_is_refused_for_end_the_step_though_the_reason_is_unknown(tmp_path: Path) -> None:
    with scripted(always(Fail(400, '{"error": {"message": "no"}}'))) as server:
        for calls in (PAIRS, PAIRS[:1]):
            with pytest.raises(StepError, match="check which of the judge's settings"):
                ask(tmp_path, judge(server), calls, name=str(len(calls)))


def test_a_value_that_the_model_does_not_take_is_named(tmp_path: Path) -> None:
    fail = Fail(400, '{"error": {"message": "temperature: Input should be greater than 0"}}')
    named = pytest.raises(StepError, match="does not take this value of the judge's temperature")
    with scripted(always(fail)) as server, named:
        ask(tmp_path, judge(server))


@pytest.mark.parametrize(
    ("status", "message", "expected", "parameter"),
    [
        (400, "Unsupported value: 'temperature' does not support 0 with this model.", Refusal.PARAMETER, "temperature"),
        (400, "Unknown parameter: 'seed'", Refusal.PARAMETER, "seed"),
        (400, "System role not supported", Refusal.PARAMETER, "system"),
        (400, "messages[0].role: 'system' is not supported", Refusal.PARAMETER, "system"),
        (400, "Use 'max_completion_tokens' instead of 'max_tokens'", Refusal.PARAMETER, "max_tokens"),
        (400, "response_format of this kind is unavailable", Refusal.PARAMETER, "response_format"),
        (400, "temperature must be between 0 and 2", Refusal.CONFIGURATION, "temperature"),
        (
            400,
            "max_tokens is too large: 9. This model has at most 5 completion tokens",
            Refusal.CONFIGURATION,
            "max_tokens",
        ),
        (400, "temperature: Input should be greater than 0", Refusal.CONFIGURATION, "temperature"),
        (400, "API key not valid", Refusal.CONFIGURATION, ""),
        (400, "The model `m` does not exist", Refusal.CONFIGURATION, ""),
        (400, "maximum context length is 9 tokens; 'max_tokens' is too large", Refusal.ITEM, ""),
        (429, "Request too large for m: Limit 3, Requested 4", Refusal.ITEM, ""),
        (429, "Rate limit reached", Refusal.RETRY, ""),
        (429, "You exceeded your current quota, please check your plan", Refusal.QUOTA, ""),
        (429, "You exceeded your current quota. Please retry in 7s.", Refusal.RETRY, ""),
        (429, "You exceeded your current quota. Please retry in 36000.5s.", Refusal.QUOTA, ""),
        (429, "Daily request limit reached, try again in 2m30s", Refusal.RETRY, ""),
        (429, "Daily request limit reached, try again in 5 Hours, 2 minutes, or pay", Refusal.QUOTA, ""),
        (403, "Your newly created team doesn't have any credits or licenses yet.", Refusal.QUOTA, ""),
        (402, "pay", Refusal.QUOTA, ""),
        (400, "Your credit balance is too low", Refusal.QUOTA, ""),
        (400, "beans are harmful", Refusal.UNKNOWN, ""),
    ],
)
def test_errors_are_read_by_their_words(status: int, message: str, expected: Refusal, parameter: str) -> None:
    shown = ["beans are harmful"] if expected is Refusal.UNKNOWN else []
    error = read_error(status, json.dumps({"error": {"message": message}}), REQUEST, shown, accepted=False)
    assert (error.refusal, error.parameter) == (expected, parameter)


def test_refused_parameters_are_left_out_one_by_one_and_recorded(tmp_path: Path) -> None:
    """The reply format, which the endpoint takes, stays."""
    with scripted(always(Say(verdict("B")))) as server:
        accepting = server.policy

        def picky(*shown: Any) -> Behaviour:
            request = server.requests[-1]
            for name in ("temperature", "seed"):
                if name in request:
                    return Fail(400, json.dumps({"error": {"message": f"{name} is not supported", "param": name}}))
            if request["messages"][0]["role"] == "system":
                return Fail(400, '{"error": {"message": "System role not supported"}}')
            return accepting(*shown)

        server.policy = picky
        replies, stats = ask(tmp_path, judge(server, seed=3, attempts=1, concurrency=1))
        assert set(outcomes(replies)) == {"second"}
        assert stats.left_out == {"temperature", "seed", "system"}
        assert stats.structured
        assert stats.calls == 12 + 3
        assert [message["role"] for message in server.requests[-1]["messages"]] == ["user"]


def test_parameters_can_be_left_out_from_the_start(tmp_path: Path) -> None:
    nothing = {"temperature": None, "max_tokens": None, "response_format": False, "system_role": None}
    with scripted(always(Say(verdict("B")))) as server:
        _, stats = ask(tmp_path, judge(server, **nothing))
        assert all(set(request) == {"model", "messages"} for request in server.requests)
        assert (stats.left_out, stats.calls) == (set(), 12)


def test_a_reply_spent_on_thoughts_is_called_that_and_not_paid_twice(tmp_path: Path) -> None:
    parts = [{"type": "reasoning.text", "text": "hm"}]
    messages = ({"content": "", "reasoning_content": "hm"}, {"content": "<think> hm"}, {"reasoning_details": parts})
    for i, message in enumerate(messages):
        with scripted(always(reply_body("length", **message))) as server:
            replies, _ = ask(tmp_path, judge(server, max_tokens=77), name=str(i))
            assert set(outcomes(replies)) == {"unparsable"}
            assert "cut at max_tokens (77)" in replies[0].raw
            assert "spent on reasoning" in replies[0].raw
            assert server.calls == 12


def test_thoughts_are_no_verdict_and_the_reply_format_is_given_up_for_them(tmp_path: Path) -> None:
    thoughts = verdict("A")
    with scripted(always(reply_body(content=None, reasoning_content=thoughts))) as server:
        replies, stats = ask(tmp_path, judge(server, concurrency=1))
        assert set(outcomes(replies)) == {"unparsable"}
        assert "reasoning_content" in replies[0].raw
        assert (server.calls, stats.left_out) == (13, {"response_format"})


def test_a_message_in_parts_is_read(tmp_path: Path) -> None:
    parts = [
        {"type": "thinking", "thinking": "A?"},
        {"type": "text", "text": "Verdict: "},
        {"type": "text", "text": "B"},
    ]
    with scripted(always(reply_body(content=parts, usage={"prompt_tokens": None, "completion_tokens": "x"}))) as server:
        assert set(outcomes(ask(tmp_path, judge(server))[0])) == {"second"}


def test_a_used_up_quota_ends_the_run_at_once_and_what_was_paid_is_kept(tmp_path: Path) -> None:
    message = "You exceeded your current quota, please check your plan and billing details."
    body = json.dumps({"error": {"message": message, "code": "insufficient_quota"}})
    with scripted(always(Say(verdict("A")))) as server:
        accepting = server.policy
        server.policy = lambda *shown: accepting(*shown) if server.calls <= 5 else Fail(429, body)
        with pytest.raises(QuotaExceeded, match=message):
            ask(tmp_path, judge(server, concurrency=2))
        assert server.calls <= 7
        with pytest.raises(QuotaExceeded, match=message):
            ask(tmp_path, judge(server))  # the same run asks no more
        assert server.calls <= 7
        server.policy = accepting
        replies, stats = ask(tmp_path, judge(server), name="two")
        assert set(outcomes(replies)) == {"first"}
        assert stats.from_ledger == 5


def test_an_error_of_the_configuration_in_the_middle_loses_no_reply_in_flight(tmp_path: Path) -> None:
    with scripted(always(Say(verdict("A"), delay=0.3))) as server:
        accepting = server.policy
        server.policy = lambda *shown: accepting(*shown) if server.calls <= 3 else Fail(401)
        with pytest.raises(StepError, match="HTTP 401"):
            ask(tmp_path, judge(server, concurrency=4))
        server.policy = accepting
        assert ask(tmp_path, judge(server), name="two")[1].from_ledger == 3


def test_a_reply_that_cannot_be_written_as_text_is_kept_without_those_characters(tmp_path: Path) -> None:
    with scripted(always(Say(f'\ud800 {{"verdict": "A", "token": "{NONCE}"}}'))) as server:
        for name in ("one", "two"):
            replies, _ = ask(tmp_path, judge(server), name=name)
            assert replies[0].raw.startswith("?")
            assert json.dumps(replies[0].raw, ensure_ascii=False).encode()


# ------------------------------------------------------------------------------------------------------- cut prompts


def test_a_cut_prompt_has_no_verdict_and_is_asked_again(tmp_path: Path) -> None:
    def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        shown = int(text_size(prompt + first + second)[0]) + 400
        tokens = 90 if prompt == PAIRS[0].prompt and attempt == 1 else shown
        usage = {"prompt_tokens": tokens, "completion_tokens": 3}
        return reply_body(content="Verdict: A", usage=usage)

    with scripted(policy) as server:
        replies, _ = ask(tmp_path, judge(server))
        assert outcomes(replies) == ["unavailable", *["first"] * 11]
        assert "counted 90 tokens" in replies[0].raw
        replies, stats = ask(tmp_path, judge(server), name="two")
        assert set(outcomes(replies)) == {"first"}
        assert (stats.calls, stats.from_ledger) == (1, 11)


# ---------------------------------------------------------------------------------- thoughts of policies, reward models


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>hm</think>\n\nYes.", "Yes."),
        ("hm\n</think>\nYes.", "Yes."),
        ("<think>a</think>Yes <think>b</think>and no.", "Yes and no."),
        ("<|START_THINKING|> never ends", ""),
        ("[THINK]x[/THINK]Yes<|begin_of_thought|>y<|end_of_thought|>.", "Yes."),
        ("I think so. ", "I think so. "),
    ],
)
def test_thoughts_are_no_part_of_an_answer(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer


def test_a_reward_model_with_several_outputs_needs_an_index_and_reads_no_text_beyond_its_context(
    tmp_path: Path,
) -> None:
    source = save(tmp_path / "source", chain_model({}), chain_tokenizer(template()))
    model = LlamaForSequenceClassification.from_pretrained(source, num_labels=3, max_position_embeddings=16)
    folder = save(tmp_path / "rm", model, chain_tokenizer(template()))

    def score(pairs: list[tuple[str, str]], output: int | None = None) -> list[float]:
        judge = scalar.reward_model(folder, revision=None, sign=1, template="chat", max_length=64, output=output)
        return judge(pairs)

    with pytest.raises(StepError, match=r"has 3 outputs.*set output to the index.*2 \(LABEL_2\)"):
        score([("why", "hello")])
    with pytest.raises(StepError, match="has no output 3"):
        score([("why", "hello")], output=3)
    short, long = score([("why", "hello"), ("why", " ".join(["hello"] * 40))], output=2)
    assert short == short
    assert long != long, "longer than its context: no score"
    assert score([("why", "hello")], output=0) != [short]
    text = scalar._text("p {response}", "a", chain_tokenizer(template()), "User: {prompt} Bot: {response} </s>")
    assert text == "User: p {response} Bot: a </s>"


def test_a_reward_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    tokenizer = chain_tokenizer(template())
    tokenizer.chat_template = None
    folder = save(tmp_path / "rm", chain_model({}), tokenizer)
    with pytest.raises(StepError, match="has no chat template; give prompt_template"):
        scalar.reward_model(folder, revision=None, sign=1, template="chat", max_length=64)


def test_a_temperature_is_fitted_only_to_enough_pairs() -> None:
    few = calibrate([1.0, 2.0], SMALLEST_SAMPLE)
    assert (few.temperature, few.fitted, few.error) == (1.0, False, few.error_before)
    assert calibrate([1.0, 2.0] * 15, SMALLEST_SAMPLE).fitted


@pytest.mark.parametrize(
    ("wins", "losses", "kind", "stops"),
    [
        (2, 8, "gold", True),
        (6, 6, "gold", True),
        (12, 0, "gold", False),
        (2, 10, "trained", True),
        (6, 6, "trained", False),
    ],
)
def test_a_canary_stops_or_warns_by_its_interval(wins: int, losses: int, kind: str, stops: bool) -> None:
    scores = [1.0] * wins + [0.0] * losses
    rate = win_rate(scores, list(range(len(scores))))

    def problem() -> str:
        return canary._canary_problem("the judge", rate, is_trained=kind == "trained", has_losses=losses > 0)

    if stops:
        with pytest.raises(StepError, match=rf"95 % interval .*{len(scores)} pairs.*--skip-canaries"):
            problem()
    else:
        assert bool(problem()) == (rate.low <= 0.5)


def test_a_judge_of_ties_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ties(pairs: list[Any]) -> list[Verdict]:
        return [Verdict(i, "none", 0, "tie", "\ud800") for i in range(len(pairs))]

    monkeypatch.setattr(canary, "make_judge", lambda *_, **__: ties)
    metrics = canary.run(canary_job(tmp_path, "helpfulness", {"kind": "gold"})).metrics
    assert isinstance(metrics, CanaryMetrics)
    assert metrics.low is not None
    assert metrics.low < metrics.win_rate == 0.5
    assert "it calls them ties" in metrics.warnings[0]
    assert pq.read_table(tmp_path / VERDICTS)["raw"][0].as_py() == "?"


# ------------------------------------------------------------------------------------------------------ judging again


def test_judging_again_fails_below_the_coverage_and_asks_for_the_missing_verdicts_alone(copied: Path) -> None:
    healed = False

    def partial(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        is_refused = not healed and chance(prompt) < 0.4
        return Fail(400, FILTERED) if is_refused else gold(prompt, first, second)

    with scripted(partial) as server:
        settings = llm_judge(server)
        answer = judge_command(copied, settings, "picky", "--skip-canaries")
        assert answer.returncode == 1, answer.stdout + answer.stderr
        assert "evaluation.min_coverage" in answer.stdout
        assert "The response was filtered" in answer.stdout
        results = load(copied)
        panel = results.comparisons["panel"].query("panel == 'picky'")
        failed = panel[panel["status"] == "failed"]
        assert len(failed)
        assert failed["error"].str.contains("content_filter").all()
        own = failed["helpfulness_coverage"] < 0.9
        assert failed.loc[own, "helpfulness"].isna().all()
        assert (panel["helpfulness_refused"] + panel["harmlessness_refused"] > 0).any()
        assert (panel["helpfulness_if_missing_lost"] <= panel["helpfulness_if_missing_won"]).all()
        before, missing = server.calls, results.verdicts["refused"].sum()
        healed = True
        answer = judge_command(copied, settings, "picky", "--skip-canaries")
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert 0 < server.calls - before <= missing
    panel = load(copied).comparisons["panel"].query("panel == 'picky'")
    assert panel["status"].eq("done").all()


def test_stored_replies_of_older_versions_are_read(tmp_path: Path) -> None:
    with scripted(always(Say(verdict("A")))) as server:
        ask(tmp_path, judge(server))
        path = next((tmp_path / "ledger").glob("*.jsonl"))
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        for entry in entries:
            del entry["time"], entry["row"]["refused"], entry["row"]["shown_tokens"]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        replies, stats = ask(tmp_path, judge(server), name="two")
        assert isinstance(replies[0], Reply)
        assert isinstance(stats, CallStats)
        assert (set(outcomes(replies)), stats.calls) == ({"first"}, 0)
