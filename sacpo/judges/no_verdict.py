"""Says why a reply holds no verdict, and whether another attempt can help."""

from __future__ import annotations

from dataclasses import dataclass

from sacpo.judges.completions import Completion
from sacpo.judges.thoughts import is_unfinished_thought


@dataclass(frozen=True)
class NoVerdict:
    """The reason.

    Attributes:
        raw: The reason with the reply, as it is stored.
        final: Another attempt at the same call cannot help.
        give_up_format: Later requests should not ask for a reply format.
    """

    raw: str
    final: bool = False
    give_up_format: bool = False


def explain(reply: Completion, max_tokens: int | None, asked_for_format: bool) -> NoVerdict:
    """Explain a reply without a verdict.

    Args:
        reply: The reply.
        max_tokens: The limit of its tokens.
        asked_for_format: Whether the request asked for a reply format.
    """
    if reply.refusal:
        return NoVerdict(f"the endpoint refused to answer: {reply.refusal}", final=True)
    is_empty = not reply.content.strip()
    if reply.cut and (is_empty or is_unfinished_thought(reply.content)):
        spent = (
            f"the reply was cut at max_tokens ({max_tokens}) before the verdict began: all "
            f"{reply.completion_tokens or 'its'} tokens were spent on reasoning; raise max_tokens of the judge"
        )
        return NoVerdict(spent, final=True)
    if reply.cut:
        raise_it = f"the reply was cut at max_tokens ({max_tokens}); raise max_tokens of the judge"
        return NoVerdict(f"{raise_it}: {reply.content}")
    if reply.broken_off:
        return NoVerdict(f"the endpoint broke the reply off (finish_reason {reply.finish}): {reply.content}")
    if is_empty and reply.thoughts:
        only_thoughts = (
            "the reply has no content, only thoughts (reasoning_content), which are no verdict; set the judge's "
            "response_format to null or change the server's reasoning parser, so that the verdict comes as "
            f"content; the thoughts end with: {reply.thoughts[-200:]}"
        )
        # Some servers count a reply in a fixed format as thoughts as a whole.
        return NoVerdict(only_thoughts, final=not asked_for_format, give_up_format=asked_for_format)
    if is_empty:
        return NoVerdict(f"the reply is empty (finish_reason {reply.finish or 'not given'})")
    return NoVerdict(reply.content)
