"""Private hooks of TRL's trainers and of the transformers trainer below them, one mixin for each purpose.

A mixin stands before the trainer in the bases of a class.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset


class OrderedExamples:
    """Takes the training examples in a given order instead of a shuffled one.

    transformers has no public way to pass a sampler (https://github.com/huggingface/transformers/pull/43318, closed).
    A list of indices serves as one: torch's DataLoader and Accelerate ask for its length and iterate over it.

    Attributes:
        order: Index of each example, those of all epochs one after the other.
    """

    order: list[int]

    def _get_train_sampler(self, *_: Any) -> list[int]:
        return self.order


class PreparedExamples:
    """Takes a data set that is tokenised and has the reference log-probabilities, if any, as it is.

    DPOTrainer and KTOTrainer have no `skip_prepare_dataset`, unlike SFTTrainer. With `precompute_ref_log_probs=True`
    they compute the reference log-probabilities again, since they cannot load any
    (https://github.com/huggingface/trl/issues/3985).
    """

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset
