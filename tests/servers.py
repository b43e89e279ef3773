"""An OpenAI-compatible server on the loopback interface with scripted replies and scripted failures."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

NONCE = "{nonce}"
_MATERIAL = re.compile(r"<<<(message|answer A|answer B) (\w+)>>>\n(.*?)\n<<<end of \1 \2>>>", re.S)


@dataclass(frozen=True)
class Say:
    """A chat completion. In the text, `{nonce}` becomes a judge's token and `{seen}` the whole prompt.

    `alternatives` are the probabilities of the token of the verdict, which requests for log-probabilities get.
    """

    text: str
    delay: float = 0.0
    finish: str = "stop"
    alternatives: dict[str, float] | None = None


@dataclass(frozen=True)
class Fail:
    """An error status. In the body, `{key}` becomes the key that the client sent."""

    status: int
    body: str = '{"error": {"message": "scripted"}}'
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Body:
    """Status 200 with this body, in which `{nonce}` becomes a judge's token."""

    text: str


# `hang` never answers, `drip` never ends; `cut` closes the connection before the head, `half` in the body.
Behaviour = Say | Fail | Body | Literal["hang", "drip", "cut", "half"]
Policy = Callable[[str, str, str, int], Behaviour]


def verdict(value: str) -> str:
    """A reply in the requested format."""
    return f'They differ.\n{{"verdict": "{value}", "token": "{NONCE}"}}'


class Server:
    """The server's script and the requests that it has received.

    Args:
        policy: The behaviour for a prompt, a first answer, a second answer and the number of the attempt at this
            triple, counted from 1. Of a call that asks for an answer, the prompt is all, and both answers are empty.
        structured: Whether the server accepts a reply format; otherwise requests with one get status 400.
    """

    def __init__(self, policy: Policy, structured: bool = True) -> None:
        self.policy, self.structured = policy, structured
        self.base_url = ""
        self.models = 200  # the status of the list of models
        self.attempts: Counter[tuple[str, str, str]] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []  # monotonic, of each request's arrival
        self.at_once = self.most_at_once = 0
        self.gather = 0  # requests that must be open at once before the first is answered
        self._gathered = asyncio.Event()
        self.ending = asyncio.Event()

    @property
    def calls(self) -> int:
        """Number of HTTP requests so far."""
        return len(self.requests)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat completion request."""
        body = await request.json()
        self.requests.append(body)
        self.times.append(time.monotonic())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.at_once >= self.gather:
            self._gathered.set()
        try:
            await self._gathered.wait()
            return await self._answer(request, body)
        finally:
            self.at_once -= 1

    async def list_models(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for the list of models."""
        return web.json_response({"data": []}, status=self.models)

    async def _answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not self.structured and "response_format" in body:
            return web.json_response({"error": {"message": "response_format is not supported"}}, status=400)
        shown = body["messages"][-1]["content"]
        materials = _MATERIAL.findall(shown)
        prompt, first, second = (text for _, _, text in materials) if materials else (shown, "", "")
        self.attempts[prompt, first, second] += 1
        behaviour = self.policy(prompt, first, second, self.attempts[prompt, first, second])
        nonce = materials[0][1] if materials else ""
        if isinstance(behaviour, Say):
            await asyncio.sleep(behaviour.delay)
            text = behaviour.text.replace(NONCE, nonce).replace("{seen}", shown)
            reply = completion(text, behaviour.finish)
            if behaviour.alternatives is not None and body.get("logprobs"):
                reply["choices"][0]["logprobs"] = logprobs(text, behaviour.alternatives, body["top_logprobs"])
            return web.json_response(reply)
        if isinstance(behaviour, Body):
            return web.Response(text=behaviour.text.replace(NONCE, nonce), content_type="application/json")
        if isinstance(behaviour, Fail):
            key = request.headers.get("Authorization", "").removeprefix("Bearer ")
            text = behaviour.body.replace("{key}", key)
            return web.Response(status=behaviour.status, text=text, headers=behaviour.headers)
        if behaviour == "hang":
            await self.ending.wait()
        response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        if behaviour in ("half", "drip"):
            await response.prepare(request)
            await response.write(b'{"choices": [')
        while behaviour == "drip" and not self.ending.is_set():
            await asyncio.sleep(0.1)
            await response.write(b" ")
        assert request.transport is not None
        request.transport.abort()
        return response


def completion(text: str, finish: str = "stop") -> dict[str, Any]:
    """A chat completion in the API's format: 100 prompt tokens, 10 completion tokens."""
    return {
        "id": "scripted",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted-2026",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


def logprobs(text: str, alternatives: dict[str, float], top: int) -> dict[str, Any]:
    """The log-probabilities of a reply in three tokens: up to the verdict, the verdict, and the rest."""
    start = text.index('"verdict": "') + len('"verdict": "')
    end = text.index('"', start)
    content = [{"token": part, "logprob": 0.0, "top_logprobs": []} for part in (text[:start], text[end:])]
    listed = sorted(alternatives.items(), key=lambda item: -item[1])[:top]
    others = [{"token": token, "logprob": math.log(p), "bytes": list(token.encode())} for token, p in listed]
    value = text[start:end]
    content.insert(1, {"token": value, "logprob": math.log(alternatives[value]), "top_logprobs": others})
    return {"content": content}


@contextlib.contextmanager
def scripted(policy: Policy, structured: bool = True) -> Iterator[Server]:
    """Run a server in a thread, on a free port, until the block ends."""
    server = Server(policy, structured)
    loop = asyncio.new_event_loop()
    application = web.Application(client_max_size=2**24)
    application.router.add_post("/v1/chat/completions", server.handle)
    application.router.add_get("/v1/models", server.list_models)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)

    async def end() -> None:
        server.ending.set()
        await runner.cleanup()

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=512).start()
        return int(runner.addresses[0][1])

    thread = threading.Thread(target=loop.run_forever, name="scripted-server", daemon=True)
    thread.start()
    try:
        server.base_url = f"http://127.0.0.1:{asyncio.run_coroutine_threadsafe(start(), loop).result()}/v1"
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
