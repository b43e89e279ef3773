"""The evaluation prompts of a plan. Those of the hub are identified by their revision, as all data of the hub are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from sacpo.data.prompts import Prompt, prompts_of_rows, read_prompts
from sacpo.planning.graph import Graph
from sacpo.planning.payloads import hashed
from sacpo.spaces.evaluation import PromptFile, PromptRows, PromptSource, SyntheticPrompts
from sacpo.spaces.space import Space
from sacpo.synthetic.world import PROMPTS


@dataclass(frozen=True)
class PromptSets:
    """Ids of the prompt sets of a plan.

    Attributes:
        criteria: Criterion to the id of its prompts.
        excluded: Prompts that no policy and no judge may be trained on: all of them, but none in the synthetic world.
        by_criterion: All prompts, with the criterion in place of the category.
    """

    criteria: dict[str, str]
    excluded: str
    by_criterion: str


def add_prompt_sets(graph: Graph, space: Space, only_shown: bool) -> PromptSets:
    """Read the prompts of a space and keep them in the graph.

    Args:
        graph: Where the prompts go.
        space: The space.
        only_shown: The plan is only shown (`--dry-run`): the hub is not asked, and files may be missing. Ids that
            depend on a hub data set are those of the sweep all the same.

    Raises:
        DataError: prompts cannot be read.
    """
    criteria: dict[str, str] = {}
    identities: dict[str, Any] = {}
    for name, criterion in space.evaluation.criteria.items():
        identity = _identity(criterion.prompts)
        if identity is not None:
            identities[name] = identity
        is_at_hand = not only_shown or identity is None
        criteria[name] = graph.add_prompts(read_sources(criterion.prompts) if is_at_hand else (), identity)
    sets = {name: graph.prompt_sets[key] for name, key in criteria.items()}
    # In the synthetic world training and evaluation ask the same prompts.
    texts = [] if space.synthetic else sorted({prompt.text for prompts in sets.values() for prompt in prompts})
    known = sorted({prompt.text for name, prompts in sets.items() if name not in identities for prompt in prompts})
    excluded = graph.add_prompts(
        [Prompt.of(text, "") for text in texts],
        {"excluded": known, "sources": sorted(criteria[name] for name in identities)} if identities else None,
    )
    by_criterion = graph.add_prompts(
        [Prompt(prompt.prompt_id, prompt.text, name) for name, prompts in sets.items() for prompt in prompts],
        {"criteria": criteria} if identities else None,
    )
    return PromptSets(criteria, excluded, by_criterion)


def read_sources(sources: list[PromptSource]) -> list[Prompt]:
    """The distinct prompts of a criterion, in the order of its sources.

    Raises:
        DataError: they cannot be read.
    """
    prompts: dict[str, Prompt] = {}
    for source in sources:
        for prompt in read_source(source):
            prompts.setdefault(prompt.prompt_id, prompt)
    return list(prompts.values())


def read_source(source: PromptSource) -> list[Prompt]:
    """The prompts of one source.

    Raises:
        DataError: they cannot be read.
    """
    match source:
        case SyntheticPrompts():
            return [Prompt.of(text, kind) for text, kind in PROMPTS if source.category in ("all", kind)]
        case PromptFile():
            return read_prompts(source.path, source.limit)
        case PromptRows():
            return prompts_of_rows(source)
        case _:
            assert_never(source)


def notes_on_prompts(space: Space) -> Iterator[str]:
    """For `--dry-run`: which prompts are read when the sweep starts."""
    for name, criterion in space.evaluation.criteria.items():
        for source in criterion.prompts:
            match source:
                case PromptRows(path=path, revision=str() as revision):
                    yield f"evaluation.{name}.prompts: {path} of the hub ({revision}) is read when the sweep starts"
                case PromptFile(path=path) if not Path(path).is_file():
                    yield (
                        f"evaluation.{name}.prompts.path: there is no {path} yet, and the sweep needs it; ids of the "
                        "steps that depend on it are provisional"
                    )
                case _:
                    pass


def _identity(sources: list[PromptSource]) -> Any:
    """What identifies a criterion's prompts other than their content; None if the content of all is at hand."""
    identities = [_identity_of_source(source) for source in sources]
    if len(sources) == 1 or not any(identities):
        return identities[0]
    return [
        identity or [(prompt.text, prompt.category) for prompt in read_source(source)]
        for source, identity in zip(sources, identities, strict=True)
    ]


def _identity_of_source(source: PromptSource) -> Any:
    """What identifies prompts other than their content: of the hub, or of a file that is not there; else None."""
    match source:
        case PromptRows(path=path, revision=str() as revision):
            return {"hub": path, "revision": revision, "settings": hashed(source)}
        case PromptFile(path=path) if not Path(path).is_file():
            return {"missing": Path(path).name}
        case _:
            return None
