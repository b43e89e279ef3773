"""Packs the sequences of a forward pass into rows, a shared prompt once, and computes logits for answer tokens only.

Sequences that begin alike become one group: their common beginning, then one branch for each. A branch's tokens see the
beginning and their own branch alone, and their positions go on after the beginning, so each has the log-probabilities
that it has by itself (prefix sharing, https://arxiv.org/abs/2410.20305). Groups fill rows of nearly equal length. A
branch starts with the last prompt token, whose copy predicts the branch's first answer token; the last answer token
predicts nothing and is not computed.

The rows go through the public interface of transformers' models: a 4-D `attention_mask` and `position_ids`. A sliding
window is cut out of the mask by positions. `sacpo.steps.packed_model` calls models with such rows.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100  # the label of tokens that are not learned
_TRIED = 8  # numbers of rows, above and below the first one


@dataclass(frozen=True)
class Branch:
    """A sequence's own tokens.

    Attributes:
        sequence: Number of the sequence.
        start: Place of the first of these tokens in the sequence.
        ids: The tokens.
    """

    sequence: int
    start: int
    ids: list[int]


@dataclass(frozen=True)
class Group:
    """Sequences that share their beginning.

    Attributes:
        shared: Tokens of the common beginning; may be empty.
        branches: What follows in each sequence.
    """

    shared: list[int]
    branches: list[Branch]

    def __len__(self) -> int:
        return len(self.shared) + sum(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True)
class Rows:
    """Packed rows; all tensors have the shape (rows, tokens).

    Attributes:
        ids: Token ids.
        positions: Place of each token in its own sequence; 0 for padding.
        groups: Number of each token's group; -1 for padding.
        branches: Number of each token's branch in its group; 0 for shared tokens.
        places: For each sequence number, the places of its branch's tokens in the flattened rows.
        starts: For each sequence number, the place of its branch's first token in the sequence.
        tokens: Number of tokens that are not padding.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    groups: torch.Tensor
    branches: torch.Tensor
    places: dict[int, range]
    starts: dict[int, int]
    tokens: int


def answer_groups(sequences: Sequence[tuple[list[int], int, int]], scale: float) -> list[Group]:
    """Groups of sequences with the same prompt.

    A group of p shared tokens with n branches of b tokens costs (p + nb) x (1 + (p + nb) / `scale`), see `distribute`.
    The cost of a branch is least where nb is the square root of p x (p + scale): then the prompt is repeated.

    Args:
        sequences: (token ids, place of the first answer token, place after the last answer token). A sequence without
            answer tokens is left out. The first token is never predicted, so the answer starts at 1 or later.
        scale: See `distribute`.
    """
    open_groups: dict[tuple[int, ...], Group] = {}
    room: dict[tuple[int, ...], float] = {}  # tokens that the open group of a prompt may still take
    groups = []
    for number, (ids, first, end) in enumerate(sequences):
        start = max(first, 1) - 1
        branch = Branch(number, start, ids[start : end - 1])
        if not branch.ids:
            continue
        key = tuple(ids[:start])
        if room.get(key, 0) < len(branch.ids):
            open_groups[key] = Group(ids[:start], [])
            groups.append(open_groups[key])
            room[key] = math.sqrt(start * (start + scale))
        open_groups[key].branches.append(branch)
        room[key] -= len(branch.ids)
    return groups


def pair_groups(firsts: Sequence[list[int]], seconds: Sequence[list[int]]) -> list[Group]:
    """One group for each pair of whole sequences; sequence i of `seconds` has the number len(firsts) + i."""
    groups = []
    for number, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
        start = min(sum(1 for _ in same), len(first) - 1, len(second) - 1)
        branches = [Branch(number, start, first[start:]), Branch(len(firsts) + number, start, second[start:])]
        groups.append(Group(first[:start], branches))
    return groups


def distribute(lengths: Sequence[int], scale: float) -> list[list[int]]:
    """Spread groups over rows, the longest first, each to the shortest row.

    The number of rows is the one with the least cost: computed tokens x (1 + row length / `scale`).

    Args:
        lengths: Length of each group; at least one.
        scale: Row length at which attention over the row costs as much as the rest of the model.

    Returns:
        Positions of the groups in each row.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    longest, total = lengths[order[0]], sum(lengths)
    fewest = -(-total // longest)  # rows, if they are to be no longer than the longest group

    def cost(count: int, width: float) -> float:
        return count * width * (1 + width / scale)

    best, best_cost = [order], cost(1, total)
    more = range(fewest, len(lengths) + 1)
    fewer = range(fewest - 1, 0, -1)
    for counts in (more, fewer):
        for count in counts[:_TRIED]:
            if cost(count, max(longest, total / count)) >= best_cost:
                break  # not even without padding, and what comes after it costs more
            rows, width = _spread(lengths, order, count)
            if cost(count, width) < best_cost:
                best, best_cost = rows, cost(count, width)
    return best


def _spread(lengths: Sequence[int], order: Sequence[int], count: int) -> tuple[list[list[int]], int]:
    """Groups in a number of rows, taken in order, each to the shortest row; and the length of the longest row."""
    heap: list[tuple[int, int]] = [(0, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for i in order:
        length, row = heap[0]
        heapq.heapreplace(heap, (length + lengths[i], row))
        rows[row].append(i)
    return rows, max(length for length, _ in heap)


def pack(groups: Sequence[Group], scale: float, pad: int) -> Rows:
    """Pack groups into rows.

    Args:
        groups: The groups; none gives one row with one padding token, so that every worker has a forward pass.
        scale: See `distribute`.
        pad: Id of the padding token.
    """
    rows = distribute([len(group) for group in groups], scale) if groups else [[]]
    width = max(1, *(sum(len(groups[i]) for i in row) for row in rows))
    ids, positions, numbers, branches = [], [], [], []
    places: dict[int, range] = {}
    starts: dict[int, int] = {}
    for r, row in enumerate(rows):
        row_ids: list[int] = []
        row_positions: list[int] = []
        row_numbers: list[int] = []
        row_branches: list[int] = []
        for i in row:
            group = groups[i]
            shared = len(group.shared)
            row_ids += group.shared
            row_positions += range(shared)
            row_branches += [0] * shared
            for k, branch in enumerate(group.branches, 1):
                place = r * width + len(row_ids)
                places[branch.sequence] = range(place, place + len(branch.ids))
                starts[branch.sequence] = branch.start
                row_ids += branch.ids
                row_positions += range(shared, shared + len(branch.ids))
                row_branches += [k] * len(branch.ids)
            row_numbers += [i] * (len(row_ids) - len(row_numbers))
        padding = width - len(row_ids)
        ids.append(row_ids + [pad] * padding)
        positions.append(row_positions + [0] * padding)
        numbers.append(row_numbers + [-1] * padding)
        branches.append(row_branches + [0] * padding)
    return Rows(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        groups=torch.tensor(numbers),
        branches=torch.tensor(branches),
        places=places,
        starts=starts,
        tokens=sum(map(len, groups)),
    )


def sees(rows: Rows, window: int | None) -> Any:
    """Which tokens a token sees, as a function of (row, head, query, key) that flex attention takes as `mask_mod`.

    Args:
        rows: The rows, on the device of the indices.
        window: Length of the sliding window in tokens; None for full attention.
    """
    groups, branches, positions = rows.groups, rows.branches, rows.positions

    def mask(row: Any, _: Any, query: Any, key: Any) -> Any:
        own = (branches[row, key] == 0) | (branches[row, key] == branches[row, query])
        visible = (key <= query) & (groups[row, key] == groups[row, query]) & own
        if window is not None:
            visible = visible & (positions[row, query] - positions[row, key] < window)
        return visible

    return mask


def boolean_mask(rows: Rows, window: int | None) -> torch.Tensor:
    """Which tokens a token sees; shape (rows, 1, queries, keys)."""
    count, width = rows.ids.shape
    device = rows.ids.device
    row = torch.arange(count, device=device)[:, None, None]
    place = torch.arange(width, device=device)
    visible: torch.Tensor = sees(rows, window)(row, None, place[None, :, None], place[None, None, :])
    return visible[:, None]
