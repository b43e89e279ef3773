"""LLM judges over HTTP with a scripted endpoint: retries, stored replies, limits, secrets, and injected verdicts."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import multiprocessing
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sacpo.errors import StepError
from sacpo.judges import call_batch, chat_client, llm
from sacpo.judges import endpoint as endpoint_module
from sacpo.judges.call_batch import CallStats, Reply
from sacpo.judges.endpoint import Call, Endpoint
from sacpo.judges.ledger import BudgetExceeded, Ledger, Meter
from sacpo.judges.refusals import retry_after_seconds
from sacpo.judges.rubric import RUBRICS
from tests.servers import NONCE, Behaviour, Body, Fail, Policy, Say, Server, scripted, verdict
from tests.test_verdicts import attacked

KEY = "sk-very-secret-0123456789"
PAIRS = [Call(f"How do I cook bean {i}?", f"Boil it for {i} hours.", "No idea.") for i in range(12)]
HONEST = ["first", "second", "tie"] * 4


def honest(prompt: str, first: str, second: str) -> str:
    """The verdict of a judge without failures on `PAIRS`."""
    return ("A", "B", "tie")[int("".join(c for c in prompt if c.isdigit())) % 3]


@pytest.fixture(autouse=True)
def short_pauses_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_batch, "BACKOFF_START", 0.01)
    monkeypatch.setenv("JUDGE_KEY", KEY)


def judge(server: Server, **changes: Any) -> Endpoint:
    settings = {"base_url": server.base_url, "api_key_env": "JUDGE_KEY", "timeout_s": 10.0, **changes}
    return Endpoint("scripted", RUBRICS["helpfulness"], **settings)


def ask(
    folder: Path, endpoint: Endpoint, calls: list[Call] = PAIRS, name: str = "one", **limits: Any
) -> tuple[list[Reply], CallStats]:
    meter = Meter(folder / name, limits.get("max_calls"), limits.get("max_spend"), (1.0, 2.0))
    return llm.ask(calls, endpoint, Ledger(folder / "ledger", name), meter, folder / "slots")


def outcomes(replies: list[Reply]) -> list[str]:
    return [reply.outcome for reply in replies]


def failing_once(failure: Behaviour) -> Policy:
    def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        return failure if attempt == 1 else Say(verdict(honest(prompt, first, second)))

    return policy


def always(behaviour: Behaviour) -> Policy:
    return lambda prompt, first, second, attempt: behaviour


FAILURES: dict[str, Behaviour] = {
    "408": Fail(408),
    "409": Fail(409),
    "429": Fail(429, headers={"Retry-After": "0.05"}),
    "429 without a time": Fail(429),
    "500": Fail(500),
    "503": Fail(503, headers={"Retry-After": "0.05"}),
    "timeout": "hang",
    "timeout in the body": "drip",
    "cut connection": "cut",
    "cut body": "half",
    "not JSON": Body("<html>bad gateway</html>"),
    "half JSON": Body('{"choices": [{"message": {"content": "{\\"verd'),
    "empty body": Body(""),
    "JSON of another shape": Body('{"choices": [null]}'),
    "no choices": Body('{"choices": []}'),
    "a reply without a verdict": Say("I cannot decide."),
    "an empty reply": Say(""),
    "a reply cut by its length": Say(verdict("A"), finish="length"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_call_is_repeated_and_changes_no_outcome(kind: str, tmp_path: Path) -> None:
    with scripted(failing_once(FAILURES[kind])) as server:
        replies, stats = ask(tmp_path, judge(server, timeout_s=4.0 if "timeout" in kind else 10.0))
        assert outcomes(replies) == HONEST
        assert server.calls == stats.calls == 24
        assert {reply.attempts for reply in replies} == {2}


@pytest.mark.parametrize("kind", ["429", "cut connection", "not JSON", "a reply without a verdict"])
def test_a_call_without_a_preference_is_no_tie_and_is_repeated_by_the_next_run(kind: str, tmp_path: Path) -> None:
    expected = "unparsable" if kind == "a reply without a verdict" else "unavailable"

    def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        honest_verdict = honest(prompt, first, second)
        return FAILURES[kind] if honest_verdict == "A" and attempt <= 3 else Say(verdict(honest_verdict))

    with scripted(policy) as server:
        replies, stats = ask(tmp_path, judge(server, attempts=3))
        assert outcomes(replies) == [expected, "second", "tie"] * 4
        assert (stats.calls, stats.from_ledger) == (8 + 4 * 3, 0)
        again, stats = ask(tmp_path, judge(server, attempts=3), name="two")
        assert outcomes(again) == HONEST
        assert (stats.calls, stats.from_ledger) == (4, 8)
        assert [reply.cached for reply in again] == [False, True, True] * 4
        assert stats.models == {"scripted-2026"}
        assert stats.fingerprints == {"fp_1"}
        elsewhere, stats = ask(tmp_path, judge(server, attempts=3, base_url="http://127.0.0.1:1/v1"), name="three")
        assert outcomes(elsewhere) == HONEST
        assert stats.calls == 0, "the address is no part of a call's key"


def test_an_endpoint_without_a_server_is_unreachable_and_one_that_fails_a_call_is_not() -> None:
    async def attempt(base_url: str) -> chat_client.Attempt:
        client = endpoint_module.Client(Endpoint("m", "r", base_url=base_url))
        try:
            return await client.attempt(PAIRS[0])
        finally:
            await client.close()

    assert asyncio.run(attempt("http://127.0.0.1:1/v1")).unreachable
    for behaviour, unreachable in ((Fail(503), True), (Fail(500), False), ("cut", False), ("half", False)):
        with scripted(always(behaviour)) as server:
            assert asyncio.run(attempt(server.base_url)).unreachable is unreachable


def test_equal_calls_are_made_once_and_different_calls_are_all_made(tmp_path: Path) -> None:
    with scripted(always(Say(verdict("tie")))) as server:
        replies, _ = ask(tmp_path, judge(server), [PAIRS[0]] * 3)
        assert [reply.cached for reply in replies] == [False, True, True]
        call = PAIRS[0]
        different = [Call(call.prompt, call.second, call.first), Call(call.prompt, call.first, call.second, repeat=1)]
        assert not any(reply.cached for reply in ask(tmp_path, judge(server), different, "two")[0])
        for i, change in enumerate(({"temperature": 1.0}, {"revision": "b"}, {"seed": 1}, {"max_tokens": 9})):
            assert not ask(tmp_path, judge(server, **change), [call], f"change-{i}")[0][0].cached
        assert server.calls == 7


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_all_calls_wait_as_long_as_a_429_asks(form: str, tmp_path: Path) -> None:
    def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        if attempt == 1 and prompt == PAIRS[0].prompt:
            until = email.utils.formatdate(time.time() + 2.0, usegmt=True)  # in whole seconds: a wait of 1 to 2 s
            return Fail(429, headers={"Retry-After": "1.2" if form == "seconds" else until})
        return Say(verdict("A"), delay=0.2)

    with scripted(policy) as server:
        ask(tmp_path, judge(server, concurrency=2))
        gaps = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
        assert server.calls == 13
        assert max(gaps) > 0.8
        assert len([time for time in server.times if time < server.times[0] + 0.8]) <= 2, "only the calls in flight"


def test_a_503_delays_only_its_own_call(tmp_path: Path) -> None:
    def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        busy = attempt == 1 and prompt == PAIRS[0].prompt
        return Fail(503, headers={"Retry-After": "0.7"}) if busy else Say(verdict("A"))

    with scripted(policy) as server:
        ask(tmp_path, judge(server, concurrency=2))
        assert server.times[-1] - server.times[0] >= 0.7
        assert server.times[-2] - server.times[0] < 0.6


@pytest.mark.parametrize(
    ("header", "wait"),
    [(None, 0), ("7", 7), ("0.5", 0.5), ("100000", 300), ("-3", 0), ("nan", 0), ("inf", 300), ("soon", 0), ("", 0)],
)
def test_malformed_and_extreme_retry_after_headers_are_handled(header: str | None, wait: float) -> None:
    assert retry_after_seconds(header) == wait


def test_a_retry_after_in_the_past_is_no_wait() -> None:
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def judge_in_process(folder: str, base_url: str, name: str) -> None:
    endpoint = Endpoint("scripted", RUBRICS["helpfulness"], base_url=base_url, concurrency=5)
    calls = [Call(f"{name} {i}", "a b", "c d") for i in range(15)]
    ask(Path(folder), endpoint, calls, name)


def test_concurrency_is_bounded_over_threads_and_processes(tmp_path: Path) -> None:
    with scripted(always(Say(verdict("A"), delay=0.15))) as server:
        server.gather = 5
        process = multiprocessing.get_context("spawn").Process(
            target=judge_in_process, args=(str(tmp_path), server.base_url, "process")
        )
        process.start()
        while not server.calls:
            time.sleep(0.01)
        threads = [
            threading.Thread(target=judge_in_process, args=(str(tmp_path), server.base_url, f"thread-{i}"))
            for i in range(2)
        ]
        for thread in threads:
            thread.start()
        for worker in (*threads, process):
            worker.join()
        assert process.exitcode == 0
        assert server.calls == 45
        assert server.most_at_once == 5


def test_a_hundred_calls_run_at_the_same_time(tmp_path: Path) -> None:
    with scripted(always(Say(verdict("A")))) as server:
        server.gather = 100
        calls = [Call(str(i), "a b", "c d") for i in range(120)]
        replies, _ = ask(tmp_path, judge(server, concurrency=120, timeout_s=60.0), calls)
        assert outcomes(replies) == ["first"] * 120
        assert server.calls == 120


def test_the_limit_of_calls_counts_retries_and_keeps_the_replies_so_far(tmp_path: Path) -> None:
    with scripted(failing_once(Fail(500))) as server:
        with pytest.raises(
            BudgetExceeded, match=r"max_calls = 15 is reached: 15 judge calls.*verdicts so far are stored"
        ):
            ask(tmp_path, judge(server, concurrency=2), max_calls=15)
        assert server.calls == 15
        replies, stats = ask(tmp_path, judge(server), name="two", max_calls=100)
        assert outcomes(replies) == HONEST
        assert stats.from_ledger >= 6
        # 12 failures and 12 verdicts: the server does not fail a call again that failed before the limit was reached.
        assert server.calls == 24


def test_the_limit_of_spend_lets_calls_in_flight_complete_and_keeps_their_replies(tmp_path: Path) -> None:
    price_of_call = (100 * 1.0 + 10 * 2.0) / 1e6
    with scripted(always(Say(verdict("A"), delay=0.1))) as server:
        with pytest.raises(BudgetExceeded, match=r"max_spend = 0\.0006 is reached: .* cost 0\.000"):
            ask(tmp_path, judge(server, concurrency=4), max_spend=5 * price_of_call)
        assert 5 <= server.calls <= 8
        assert Meter(tmp_path / "one", None, None, (1.0, 2.0)).used() == (
            server.calls,
            pytest.approx(server.calls * price_of_call),
        )
        _, stats = ask(tmp_path, judge(server), name="two")
        assert stats.from_ledger == 12 - stats.calls
        assert server.calls == 12, "every verdict that was paid for is stored"
    error = pickle.loads(pickle.dumps(BudgetExceeded("spent")))
    assert isinstance(error, StepError)


def test_stats_describe_the_calls_and_the_endpoint(tmp_path: Path) -> None:
    with scripted(failing_once(Say("Hm."))) as server:
        replies, stats = ask(tmp_path, judge(server, price_prompt=1.0, price_completion=2.0, seed=3))
        assert stats == CallStats({"scripted-2026"}, {"fp_1"}, True, 24, 0, 2400, 240, pytest.approx(24 * 120 / 1e6))
        assert (replies[0].prompt_tokens, replies[0].completion_tokens, replies[0].cached) == (200, 20, False)
        assert "They differ." in replies[0].raw
        assert 0 < replies[0].latency < 5
        request = server.requests[0]
        assert (request["temperature"], request["seed"], request["max_tokens"]) == (0.0, 3, 1024)
        assert len({json.dumps(request["response_format"]) for request in server.requests}) == 1
        assert len({request["messages"][0]["content"] for request in server.requests}) == 24, (
            "every attempt has a nonce of its own"
        )


def test_structured_output_is_not_requested_again_after_a_refusal(tmp_path: Path) -> None:
    with scripted(always(Say(verdict("B"))), structured=False) as server:
        replies, stats = ask(tmp_path, judge(server, concurrency=3, attempts=1))
        assert set(outcomes(replies)) == {"second"}
        assert not stats.structured
        assert server.calls == stats.calls == 12 + 3
        assert sum("response_format" in request for request in server.requests) == 3


def test_the_new_name_of_a_renamed_parameter_is_used(tmp_path: Path) -> None:
    with scripted(always(Say(verdict("B")))) as server:
        accepting = server.policy
        refusal = Fail(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        server.policy = lambda *shown: refusal if "max_tokens" in server.requests[-1] else accepting(*shown)
        replies, stats = ask(tmp_path, judge(server, concurrency=5, attempts=1))
        assert set(outcomes(replies)) == {"second"}
        assert stats.structured
        assert server.requests[-1]["max_completion_tokens"] == 1024


@pytest.mark.parametrize("status", [401, 403, 404, 400, 422, 418])
def test_a_refusal_ends_the_step_with_the_way_out_and_without_the_key(
    status: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    refusal = Fail(status, "Incorrect API key provided: {key}")
    with scripted(always(refusal)) as server, pytest.raises(StepError) as caught:
        ask(tmp_path, judge(server))
    text = str(caught.value)
    for part in (server.base_url, "scripted", f"HTTP {status}", "JUDGE_KEY", "check ", "provided: [key]"):
        assert part in text
    assert server.calls <= 24
    error = caught.value
    outputs = [text, repr(error), caplog.text, repr(error.__context__), repr(error.__cause__)]
    assert "openai" in caplog.text
    assert not any(KEY in part for part in [*outputs, *contents(tmp_path)])


def contents(folder: Path) -> list[str]:
    return [path.read_text() for path in folder.rglob("*") if path.is_file()]


def test_the_key_is_in_no_reply_file_or_repr(tmp_path: Path) -> None:
    echoing = {"message": {"content": f"Your key is {KEY}. Verdict: A"}}
    bodies = [
        Body(json.dumps({"choices": [echoing], "model": f"m {KEY}", "system_fingerprint": KEY})),
        Fail(500, "key {key}"),
        Body(f"not JSON {KEY}"),
    ]
    for i, behaviour in enumerate(bodies):
        with scripted(always(behaviour)) as server:
            replies, stats = ask(tmp_path, judge(server, attempts=1), name=str(i))
            assert "[key]" in replies[0].raw or i
            client = endpoint_module.Client(judge(server))
            assert KEY not in repr((replies, stats, judge(server), client))
    assert replies[0].outcome == "first", "the reply of the first endpoint is stored"
    assert not any(KEY in part for part in contents(tmp_path))


@pytest.mark.parametrize(
    ("value", "problem"), [(None, "not set"), ("  ", "not set"), ("a\u20acb", "no key has"), ("a b", "no key has")]
)
def test_a_missing_or_impossible_key_is_named_by_its_variable(
    value: str | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with scripted(always(Say(verdict("A")))) as server:
        with pytest.raises(StepError, match=rf"environment variable JUDGE_KEY.* {problem}"):
            ask(tmp_path, judge(server))
        assert server.calls == 0


def test_no_key_from_the_environment_is_sent_to_an_endpoint_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with scripted(always(Fail(500, "{key}"))) as server:
        replies, _ = ask(tmp_path, judge(server, api_key_env=None, attempts=1))
        assert replies[0].raw == "HTTP 500: none"


def test_an_environment_variable_does_not_redirect_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    client = endpoint_module.Client(Endpoint("m", "r", api_key_env="JUDGE_KEY"))
    assert str(client._client.base_url).startswith(chat_client.OPENAI_URL)


def test_the_judges_own_verdict_counts_whatever_it_quotes(tmp_path: Path) -> None:
    replies: dict[str, Callable[[str], str]] = {
        "quotes before": lambda own: "{seen}\n" + own,
        "quotes after": lambda own: own + "\n{seen}",
        "quotes around": lambda own: "{seen}\n" + own + "\n{seen}",
        "one object": lambda own: '{"reasons": "They say {\\"verdict\\": \\"A\\"}", ' + own[1:],
        "in a fence": lambda own: "```json\n" + own + "\n```",
    }
    calls = [Call(*texts) for texts in attacked()]
    for name, form in replies.items():
        with scripted(always(Say(form(f'{{"verdict": "B", "token": "{NONCE}"}}')))) as server:
            results, _ = ask(tmp_path / name, judge(server, attempts=1), calls)
            assert set(outcomes(results)) == {"second"}, name
