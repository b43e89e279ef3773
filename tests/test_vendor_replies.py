"""Replies and errors of many vendors: streams, tools, replies that are broken off, errors with status 200."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sacpo.errors import StepError
from sacpo.judges import call_batch
from sacpo.judges.ledger import QuotaExceeded
from sacpo.judges.refusals import Refusal, read_error
from sacpo.judges.streams import read_body
from tests.servers import NONCE, Behaviour, Body, Fail, Policy, completion, scripted, verdict
from tests.test_field_judges import REQUEST, one_odd, reply_body
from tests.test_judges import HONEST, always, ask, honest, judge, outcomes

OBJECT = {"verdict": "{letter}", "token": NONCE}


@pytest.fixture(autouse=True)
def short_pauses_and_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_batch, "BACKOFF_START", 0.01)
    monkeypatch.setenv("JUDGE_KEY", "sk-another-secret")


def streamed(text: str, *, ends: bool = True) -> str:
    """A stream in three parts, with a comment that keeps the connection open and usage at its end."""
    third = len(text) // 3 + 1
    deltas: list[dict[str, Any]] = [{"role": "assistant", "reasoning_content": "hm"}]
    deltas += [{"content": text[i : i + third]} for i in range(0, len(text), third)]
    chunks: list[dict[str, Any]] = [{"model": "m", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    if ends:
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        chunks.append({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})
    return ": wait\n\n" + "".join(f"data: {json.dumps(chunk)}\r\n\r\n" for chunk in chunks) + "data: [DONE]\n\n"


def calling(**call: Any) -> str:
    return reply_body("tool_calls", content=None, **call).text


READABLE: dict[str, str] = {
    "a stream": streamed(verdict("{letter}")),
    "a tool call": calling(tool_calls=[{"function": {"name": "verdict", "arguments": json.dumps(OBJECT)}}]),
    "a tool call with decoded arguments": calling(tool_calls=[{"function": {"arguments": OBJECT}}]),
    "a function call": calling(function_call={"name": "verdict", "arguments": json.dumps(OBJECT)}),
    "a decoded reply": reply_body(content=OBJECT).text,
    "a byte order mark": "\ufeff" + json.dumps(completion(json.dumps(OBJECT))),
    "no usage": json.dumps({"choices": [{"message": {"content": json.dumps(OBJECT)}}]}),
}


@pytest.mark.parametrize("kind", READABLE)
def test_a_verdict_is_read_in_whatever_form_it_comes(kind: str, tmp_path: Path) -> None:
    def policy(prompt: str, first: str, second: str, attempt: int) -> Behaviour:
        return Body(READABLE[kind].replace("{letter}", honest(prompt, first, second)))

    with scripted(policy) as server:
        replies, stats = ask(tmp_path, judge(server))
        assert outcomes(replies) == HONEST
        assert stats.calls == 12
        assert (stats.prompt_tokens > 0) is (kind != "no usage")


BROKEN_OFF: dict[str, Body] = {
    "abort": reply_body("abort", content="Verdict: B"),
    "error": reply_body("error", content="Verdict: B"),
    "insufficient_system_resource": reply_body("insufficient_system_resource", content="Verdict: B"),
    "incomplete_stream": Body(streamed("Verdict: B", ends=False)),
}


@pytest.mark.parametrize("kind", BROKEN_OFF)
def test_a_reply_that_was_broken_off_has_no_verdict(kind: str, tmp_path: Path) -> None:
    with scripted(one_odd(BROKEN_OFF[kind])) as server:
        replies, _ = ask(tmp_path, judge(server, attempts=2))
        assert outcomes(replies) == ["unparsable", *HONEST[1:]]
        assert f"broke the reply off (finish_reason {kind}): Verdict: B" in replies[0].raw
        assert replies[0].attempts == 2


def test_a_reply_that_a_filter_cut_has_no_verdict(tmp_path: Path) -> None:
    with scripted(one_odd(reply_body("content_filter", content="Verdict: B"))) as server:
        replies, _ = ask(tmp_path, judge(server))
        assert outcomes(replies) == ["unavailable", *HONEST[1:]]
        assert (replies[0].refused, replies[0].attempts) == (True, 1)


def test_an_empty_reply_says_that_it_is_empty(tmp_path: Path) -> None:
    with scripted(one_odd(reply_body(content=""))) as server:
        replies, _ = ask(tmp_path, judge(server, attempts=1))
        assert outcomes(replies) == ["unparsable", *HONEST[1:]]
        assert replies[0].raw == "the reply is empty (finish_reason stop)"


BLOCKED = {"choices": [], "prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": True}}}]}
WITH_STATUS_200: list[tuple[dict[str, Any], Refusal]] = [
    (BLOCKED, Refusal.ITEM),
    ({"choices": None, "base_resp": {"status_msg": "input new_sensitive"}}, Refusal.ITEM),
    ({"choices": None, "base_resp": {"status_msg": "insufficient balance"}}, Refusal.QUOTA),
    ({"error_code": 17, "error_msg": "Open api daily request limit reached"}, Refusal.QUOTA),
    ({"error": {"message": "Invalid API key", "type": "authentication_error"}}, Refusal.CONFIGURATION),
    ({"error": "The model is not available, try again later"}, Refusal.RETRY),
    ({"detail": "something else"}, Refusal.RETRY),
]


@pytest.mark.parametrize(("body", "expected"), WITH_STATUS_200)
def test_an_error_with_status_200_is_an_error(body: dict[str, Any], expected: Refusal, tmp_path: Path) -> None:
    policy: Policy = one_odd(Body(json.dumps(body)))
    with scripted(policy) as server:
        if expected in (Refusal.QUOTA, Refusal.CONFIGURATION):
            error: type[StepError] = QuotaExceeded if expected is Refusal.QUOTA else StepError
            with pytest.raises(error, match="an error in a reply with HTTP 200"):
                ask(tmp_path, judge(server, concurrency=1))
            assert server.calls == 1
            return
        replies, _ = ask(tmp_path, judge(server, attempts=2))
        assert outcomes(replies) == ["unavailable", *HONEST[1:]]
        assert replies[0].refused is (expected is Refusal.ITEM)
        assert replies[0].attempts == (1 if expected is Refusal.ITEM else 2)


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (400, "Failed to generate JSON. See 'failed_generation'.", Refusal.RETRY),
        (424, "Request failed during generation", Refusal.RETRY),
        (499, "", Refusal.RETRY),
        (429, "\u60a8\u7684\u8d26\u6237\u5df2\u6b20\u8d39\uff0c\u8bf7\u5145\u503c\u540e\u91cd\u8bd5", Refusal.QUOTA),
        (429, "Rate limit exceeded: limit of 50 requests per day", Refusal.QUOTA),
        (429, "Limit 200 requests per day. Please try again in 7m12s.", Refusal.RETRY),
        (400, "\u5185\u5bb9\u53ef\u80fd\u5305\u542b\u654f\u611f\u5185\u5bb9", Refusal.ITEM),
        (400, "Content violates usage guidelines. API key ID: 2. Failed check: BIO", Refusal.ITEM),
        (400, "Could not finish the message because max_tokens was reached. Try a higher max_tokens.", Refusal.ITEM),
        (422, "Input validation error: `inputs` must have less than 4095 tokens. Given: 5000", Refusal.ITEM),
    ],
)
def test_more_errors_are_read_by_their_words(status: int, message: str, expected: Refusal) -> None:
    assert read_error(status, json.dumps({"error": message}), REQUEST, [], accepted=False).refusal is expected


def test_a_field_that_is_named_by_its_place_is_left_out(tmp_path: Path) -> None:
    detail = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 3}
    with scripted(always(Body(json.dumps(completion("[[A]]"))))) as server:
        accepting = server.policy
        refusal = Fail(422, json.dumps({"detail": [detail]}))
        server.policy = lambda *shown: refusal if "seed" in server.requests[-1] else accepting(*shown)
        replies, stats = ask(tmp_path, judge(server, seed=3, concurrency=1))
        assert set(outcomes(replies)) == {"first"}
        assert (stats.left_out, stats.calls) == ({"seed"}, 13)


def test_a_firewall_that_blocks_the_first_text_ends_nothing(tmp_path: Path) -> None:
    blocked = Fail(403, "<html>Sorry, you have been blocked</html>")
    with scripted(one_odd(blocked)) as server:
        replies, stats = ask(tmp_path, judge(server, concurrency=1))
        assert outcomes(replies) == ["unavailable", *HONEST[1:]]
        assert stats.structured
    with scripted(always(blocked)) as server, pytest.raises(StepError, match="check the rights of the key"):
        ask(tmp_path / "all", judge(server))


def test_thoughts_in_the_chunks_of_a_stream_are_joined() -> None:
    parts = [{"type": "reasoning.text", "text": text} for text in ("A", " or B")]
    chunks = [{"choices": [{"index": 0, "delta": {"reasoning_details": [part]}}]} for part in parts]
    body = read_body("".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks))
    assert body["choices"][0]["message"] == {"reasoning_details": parts}
