"""The graph of steps that the planners fill: each step once, each input file hashed once, each prompt set once."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sacpo.data.prompts import Prompt
from sacpo.data.sources import matching_files
from sacpo.hashing import canonical, content_id, file_digest
from sacpo.planning.kinds import KINDS
from sacpo.planning.payloads import Content, FileContent, HubContent, Payload, hashed, lora_of
from sacpo.planning.plan import Step


class Graph:
    """Steps, inputs and prompt sets of a plan that is being made, or of an existing plan that is extended."""

    def __init__(self, steps: dict[str, Step] | None = None) -> None:
        self.steps: dict[str, Step] = dict(steps or {})
        self.prompt_sets: dict[str, tuple[Prompt, ...]] = {}
        self.contents: dict[tuple[str, str | None], Content] = {}

    def add(self, kind: str, label: str, payload: Payload, parents: dict[str, str] | None = None) -> str:
        """Add a step unless it is there; returns its id.

        A parent that is an adapter is given together with its base: beside `policy` there is `policy_base`.
        """
        parents = with_bases(self.steps, parents or {})
        recipe = KINDS[kind].recipe
        step_id = content_id(kind, {"recipe": recipe, "payload": hashed(payload), "parents": parents})
        if step_id not in self.steps:
            step = Step(id=step_id, kind=kind, label=label, recipe=recipe, payload=payload, parents=parents)
            self.steps[step_id] = step
        return step_id

    def content(self, path: str | list[str], revision: str | None) -> Content:
        """Identity of an input, hashed once.

        Raises:
            DataError: the file cannot be read.
        """
        key = (canonical(path), revision)
        if key not in self.contents:
            self.contents[key] = _source_content(path, revision)
        return self.contents[key]

    def add_prompts(self, prompts: Iterable[Prompt], identity: Any = None) -> str:
        """Keep a set of prompts.

        Args:
            prompts: The prompts; none if a plan is only shown and they are not at hand.
            identity: What identifies them in place of their content: a hub repository, its revision and settings.

        Returns:
            The id by which payloads name the set.
        """
        prompts = tuple(prompts)
        content = [[prompt.prompt_id, prompt.text, prompt.category] for prompt in prompts]
        texts = canonical(identity or content)
        key = f"prompts-{hashlib.sha256(texts.encode()).hexdigest()[:20]}"
        self.prompt_sets[key] = prompts
        return key


def base_of(steps: Mapping[str, Step], step_id: str) -> str:
    """The step whose weights a policy's adapter is added to; the policy's own step if it has all weights."""
    while lora_of(steps[step_id].payload) is not None:
        step_id = steps[step_id].parents["policy"]
    return step_id


def with_bases(steps: Mapping[str, Step], parents: Mapping[str, str]) -> dict[str, str]:
    """The parents by role, and the base of each one that is an adapter as `ROLE_base`."""
    bases = {role: base_of(steps, step_id) for role, step_id in parents.items()}
    added = {f"{role}_base": base for role, base in bases.items() if base != parents[role]}
    return {**parents, **added}


def _source_content(path: str | list[str], revision: str | None) -> Content:
    """Identity of an input: the digest of a local file or folder, or the revision of a hub id.

    Several files have the digest of their digests in the order in which they are read.
    """
    if isinstance(path, list) or (not Path(path).exists() and glob.has_magic(path)):
        digests = "\n".join(file_digest(file) for file in matching_files(path))
        return FileContent(sha256=hashlib.sha256(digests.encode()).hexdigest())
    if Path(path).exists():
        return FileContent(sha256=file_digest(Path(path)))
    return HubContent(hub=path, revision=str(revision))
