"""The text of `--inspect`: what the model will see, from `inspection.json`."""

from __future__ import annotations

from typing import Any

from sacpo.execution.artifacts import PROMPT_END
from sacpo.spaces.space import Space

_WIDTH = 400  # characters of a rendered example


def inspection_text(content: dict[str, Any], space: Space) -> str:
    """The inspection as text.

    Args:
        content: `inspection.json`.
        space: The space that was inspected.
    """
    positions = content["positions"]
    limit = "no limit in its configuration" if positions is None else f"{positions} positions"
    lines = [
        f"model: {limit}; an answer ends at {' or '.join(content['end_tokens'])}",
        f"texts are shown as tokens separated by |; {PROMPT_END} ends the prompt; the rest is trained on",
    ]
    lines += [f"note: {note}" for note in content["notes"]]
    for source in content["data"]:
        lines += ["", source["source"]]
        held_out = f", {source['held_out']} held out" if source["held_out"] else ""
        lines.append(f"  {source['rows']} rows, {source['examples']} examples{held_out}")
        lines += [f"  left out, {reason}: {count}" for reason, count in source["left_out"].items() if count]
        if source["unread_columns"]:
            lines.append(f"  columns that the format does not read: {', '.join(source['unread_columns'])}")
        needed = source["needed_length"]
        would_do = f"; {needed['p99']} would keep 99 % of the examples, {needed['p100']} all" if needed else ""
        lines.append(f"  tokens: {_lengths(source['tokens'])}; data.max_length {space.data.max_length}{would_do}")
        lines += [f"  {_shortened(text)}" for text in source["shown"]]
    for criterion in content["evaluation"]:
        lines += ["", f"prompts of {criterion['criterion']}: {criterion['prompts']}"]
        new_tokens = space.evaluation.generation.max_new_tokens
        lines.append(f"  tokens: {_lengths(criterion['tokens'])}; max_new_tokens {new_tokens}")
        lines += [f"  {_shortened(text)}" for text in criterion["shown"]]
    answer = content["answer"]
    lines += ["", f"the model's greedy answer to {answer['prompt']!r}:", f"  {_shortened(answer['response'])}"]
    return "\n".join(lines)


def _lengths(percentiles: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in percentiles.items())


def _shortened(text: str) -> str:
    """The beginning of a long text and the part around the end of the prompt, on one line."""
    text = text.replace("\n", "\\n")
    if len(text) <= _WIDTH:
        return text
    third = _WIDTH // 3
    boundary = text.find(PROMPT_END)
    if boundary < 2 * third:
        return f"{text[:_WIDTH]} ..."
    end = boundary + third
    return f"{text[:third]} ... {text[boundary - third : end]}" + (" ..." if end < len(text) else "")
