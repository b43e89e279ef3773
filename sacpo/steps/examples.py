"""The examples of a training step, in one order that depends on neither the number of workers nor on a resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
    rows = pq.read_table(job.parents["data"] / EXAMPLES)
    if "reference" in job.parents:
        rows = _with_reference(job, rows)
    used = len(rows) - len(rows) % settings.batch_size
    if used == 0:
        raise StepError(
            f"training.{payload.method}.batch_size is {settings.batch_size}, but there are {len(rows)} examples; "
            "give more examples or a smaller batch"
        )
    random = np.random.default_rng([payload.seed, 3])
    rows = rows.take(np.sort(random.permutation(len(rows))[:used]))
    if isinstance(payload, RewardPayload):
        rows = whole_pairs(rows)
    order = np.concatenate([random.permutation(used) for _ in range(settings.epochs)])
    if not METHODS[payload.method].keeps_order:
        order = longest_first(order, _lengths(rows), settings.batch_size)
        if job.resources.packing:
            order = spread(order, batch.total, batch.passes)
    return Examples(Dataset(rows), order.tolist())


def longest_first(order: np.ndarray, lengths: Sequence[int] | np.ndarray, batch_size: int) -> np.ndarray:
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


def _lengths(rows: pa.Table) -> np.ndarray:
    """Token ids of each example, in all its columns."""
    lists = [column for column in rows.columns if pa.types.is_list(column.type)]
    return np.asarray(sum(pc.list_value_length(column).to_numpy() for column in lists))


def _with_reference(job: Job[AnyTrainPayload], rows: pa.Table) -> pa.Table:
    """The examples with the reference log-probabilities; a live reference takes only KTO's partners from that step."""
    reference = pq.read_table(job.parents["reference"] / REFERENCE)
    if not np.array_equal(reference["example"].to_numpy(), np.arange(len(rows))):
        raise StepError(
            f"the reference step has log-probabilities of {len(reference)} examples, the data step {len(rows)} examples"
        )
    if "partner" in reference.column_names:
        rows = rows.append_column("KL_completion_ids", rows["completion_ids"].take(reference["partner"]))
    if job.resources.reference == "live":
        return rows
    for name in reference.column_names:
        if name.startswith("ref_"):
            rows = rows.append_column(name, reference[name])
    return rows
