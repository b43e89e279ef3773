"""The examples of a training step, in one order that depends on neither the number of workers nor on a resume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset

from sacpo.data.tokenise import whole_pairs
from sacpo.errors import StepError
from sacpo.execution.artifacts import EXAMPLES, REFERENCE
from sacpo.execution.job import Job
from sacpo.planning.payloads import AnyTrainPayload, RewardPayload
from sacpo.spaces.methods import METHODS
from sacpo.steps.batch import Batch


@dataclass(frozen=True)
class Examples:
    """Training examples.

    Attributes:
        rows: The examples of one epoch.
        order: Numbers of the examples of all epochs, one epoch after the other.
    """

    rows: Dataset
    order: list[int]


def load_examples(job: Job[AnyTrainPayload], batch: Batch) -> Examples:
    """The examples of a stage and the order in which those of all epochs are taken.

    Each epoch is shuffled by the step's seed; a remainder that fills no whole batch is left out. The order within an
    update changes no sum over it. Examples to be packed are spread so that forward passes have similar numbers of
    tokens and long texts share rows with short ones; others go longest first, so that a forward pass needs little
    padding. A method whose loss depends on the examples beside each other (KTO) keeps the shuffled order.

    Raises:
        StepError: there are fewer examples than one batch, or the reference log-probabilities belong to other data.
    """
    payload, settings = job.payload, job.payload.settings
    rows = pq.read_table(job.parents["data"] / EXAMPLES).to_pylist()
    if "reference" in job.parents:
        rows = _with_reference(job, rows)
    used = len(rows) - len(rows) % settings.batch_size
    if used == 0:
        raise StepError(
            f"training.{payload.method}.batch_size is {settings.batch_size}, but there are {len(rows)} examples; "
            "give more examples or a smaller batch"
        )
    random = np.random.default_rng([payload.seed, 3])
    rows = [rows[i] for i in sorted(random.permutation(len(rows))[:used])]
    if isinstance(payload, RewardPayload):
        rows = whole_pairs(rows)
    order = np.concatenate([random.permutation(used) for _ in range(settings.epochs)])
    if not METHODS[payload.method].keeps_order:
        lengths = [sum(len(value) for value in row.values() if isinstance(value, list)) for row in rows]
        order = longest_first(order, lengths, settings.batch_size)
        if job.resources.packing:
            order = spread(order, batch.total, batch.passes)
    return Examples(Dataset.from_list(rows), order.tolist())


def longest_first(order: np.ndarray, lengths: list[int], batch_size: int) -> np.ndarray:
    """The same examples in every batch, the longest first within a batch.

    Args:
        order: Numbers of the examples of all epochs; a multiple of `batch_size` of them.
        lengths: Length of each example.
        batch_size: Examples of an update.
    """
    batches = order.reshape(-1, batch_size)
    descending = np.argsort(-np.asarray(lengths)[batches], axis=1, kind="stable")
    return np.asarray(np.take_along_axis(batches, descending, axis=1).reshape(-1))


def spread(order: np.ndarray, batch_size: int, passes: int) -> np.ndarray:
    """The same examples in every batch, spread over forward passes of equal size: there and back, like dealt cards.

    Args:
        order: Numbers of the examples, the longest first within a batch.
        batch_size: Examples of an update.
        passes: Forward passes of an update, over all workers.
    """
    dealt = order.reshape(-1, batch_size // passes, passes).copy()
    dealt[:, 1::2] = dealt[:, 1::2, ::-1]
    return dealt.transpose(0, 2, 1).reshape(-1)


def _with_reference(job: Job[AnyTrainPayload], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The examples with the reference log-probabilities; a live reference takes only KTO's partners from that step."""
    reference = pq.read_table(job.parents["reference"] / REFERENCE).to_pylist()
    if [row["example"] for row in reference] != list(range(len(rows))):
        raise StepError(
            f"the reference step has log-probabilities of {len(reference)} examples, the data step {len(rows)} examples"
        )
    if "partner" in reference[0]:
        rows = [
            row | {"KL_completion_ids": rows[r["partner"]]["completion_ids"]}
            for row, r in zip(rows, reference, strict=True)
        ]
    if job.resources.reference == "live":
        return rows
    names = [name for name in reference[0] if name.startswith("ref_")]
    return [row | {name: r[name] for name in names} for row, r in zip(rows, reference, strict=True)]
