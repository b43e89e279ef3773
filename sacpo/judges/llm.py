"""Asks an LLM judge which of two answers is preferable, in batches of calls (`sacpo.judges.call_batch`).

A reply to a prompt that the endpoint cut is no verdict. `sacpo.judges.answers` asks for answers likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from sacpo.judges.call_batch import CallStats, Reply, replies_to
from sacpo.judges.endpoint import Call, Client, Endpoint
from sacpo.judges.ledger import KEPT, Ledger, Meter, call_key
from sacpo.judges.rubric import messages
from sacpo.judges.truncation import PromptSize, cut_prompts, text_size


def ask(
    calls: Sequence[Call], endpoint: Endpoint, ledger: Ledger, meter: Meter, slots_folder: Path
) -> tuple[list[Reply], CallStats]:
    """Get a reply to every call, from the ledger or from the endpoint. Equal calls are made once.

    Args:
        calls: The calls.
        endpoint: The judge model.
        ledger, meter, slots_folder: As for `replies_to`.

    Returns:
        The replies in the order of the calls, and facts about the batch.

    Raises:
        StepError, BudgetExceeded: As for `replies_to`.
    """
    judge = endpoint.identity()
    keys = [call_key(judge, call.prompt, call.first, call.second, call.repeat) for call in calls]
    by_key = dict(zip(keys, calls, strict=True))
    replies, stored, stats = replies_to(
        by_key, endpoint, lambda accepted: Client(endpoint, accepted), ledger, meter, slots_folder
    )
    stats.from_ledger = sum(key in stored for key in keys)
    empty = messages(endpoint.rubric, "", "", "", "0" * 16, reasons=endpoint.reasons)
    frame = text_size("\n".join(message["content"] for message in empty))
    sizes = {key: _size(call, frame) for key, call in by_key.items() if replies[key].outcome in KEPT}
    refuse_cut_prompts(sizes, replies, ledger)
    first_position = {key: i for i, key in reversed(list(enumerate(keys)))}
    return [replace(replies[key], cached=key in stored or first_position[key] < i) for i, key in enumerate(keys)], stats


def refuse_cut_prompts(sizes: Mapping[str, tuple[float, int]], replies: dict[str, Reply], ledger: Ledger) -> None:
    """Replace the replies to prompts that the endpoint cut by failures, also in the ledger.

    Args:
        sizes: Size of the prompt (`text_size`) of each call with a reply, by key.
        replies: The replies by key.
        ledger: The ledger of these replies.
    """
    keys = list(sizes)
    for i in cut_prompts([PromptSize(*sizes[key], replies[key].shown_tokens) for key in keys]):
        replies[keys[i]] = _cut(replies[keys[i]])
        ledger.add(keys[i], asdict(replies[keys[i]]))


def _size(call: Call, frame: tuple[float, int]) -> tuple[float, int]:
    """Size of a judge's whole prompt: that of the text around the material, and of the material."""
    parts = [frame, *map(text_size, (call.prompt, call.first, call.second))]
    return sum(estimate for estimate, _ in parts), sum(words for _, words in parts)


def _cut(reply: Reply) -> Reply:
    """A reply to a prompt that was cut, which is no verdict on the pair and no answer to the prompt."""
    reason = (
        f"the endpoint counted {reply.shown_tokens} tokens, far fewer than this prompt has, so it was cut: raise the "
        "server's context length (for Ollama: num_ctx)"
    )
    return replace(reply, outcome="unavailable", raw=f"{reason}; the reply was: {reply.raw[:200]}")
