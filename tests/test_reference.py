"""Precomputed reference log-probabilities, compared with the model's own, and the order of examples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from sacpo.data.batching import batches_by_length
from sacpo.steps.examples import longest_first, spread
from sacpo.steps.policies import load_policy
from sacpo.steps.reference import kl_partners, log_probabilities
from tests.jobs import policy


@pytest.mark.parametrize("packing", [True, False])
def test_log_probabilities_are_the_models_own(tmp_path: Path, packing: bool) -> None:
    model, tokenizer = load_policy({"policy": policy(tmp_path)})
    torch.manual_seed(0)
    draw = lambda n: torch.randint(4, len(tokenizer), (n,)).tolist()  # noqa: E731
    sequences = [(draw(1 + i % 3), draw(1 + i % 4)) for i in range(11)]
    logps, tokens, slots = log_probabilities(model, sequences, 4, tokenizer.pad_token_id, 6, packing=packing)
    for (prompt, completion), value in zip(sequences, logps, strict=True):
        ids = (prompt + completion)[:6]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        own = sum(float(logits[k - 1, ids[k]]) for k in range(len(prompt), len(ids)))
        assert value == pytest.approx(own, abs=1e-4)
    texts = sum(min(6, len(p) + len(c)) for p, c in sequences)
    assert tokens < texts if packing else tokens == texts
    assert slots >= tokens


def test_partners_have_other_prompts_and_are_spread_over_the_examples() -> None:
    prompts = [[i % 5] * (1 + i % 5) for i in range(40)]
    column = pa.chunked_array([prompts[:7], [], prompts[7:]], pa.list_(pa.int32()))
    partners = kl_partners(column)
    assert all(prompts[i] != prompts[j] for i, j in enumerate(partners))
    assert len(set(partners)) > 25
    assert partners == kl_partners(column)
    assert kl_partners(pa.chunked_array([[[1], [1]]])) in ([1, 0], [0, 1])
    assert kl_partners(pa.chunked_array([[[1]]])) == [0]


def test_examples_are_sorted_by_length_within_an_update_only() -> None:
    order = np.random.default_rng(0).permutation(24)
    lengths = np.random.default_rng(1).integers(5, 50, 24).tolist()
    result = longest_first(order, lengths, 8)
    for start in range(0, 24, 8):
        batch = result[start : start + 8]
        assert sorted(batch) == sorted(order[start : start + 8])
        assert [lengths[i] for i in batch] == sorted((lengths[i] for i in batch), reverse=True)


def test_packed_examples_stay_in_their_update_and_long_ones_are_spread_over_its_passes() -> None:
    order = np.arange(24)  # the longest first in each update of 12
    result = spread(order, 12, 3)
    assert result.tolist()[:12] == [0, 5, 6, 11, 1, 4, 7, 10, 2, 3, 8, 9]
    assert sorted(result.tolist()[12:]) == list(range(12, 24))


def test_batches_by_length_take_every_sequence_once_and_the_longest_first() -> None:
    lengths = np.random.default_rng(1).integers(5, 50, 21).tolist()
    batches = list(batches_by_length(lengths, 8))
    assert [len(batch) for batch in batches] == [8, 8, 5]
    order = [i for batch in batches for i in batch]
    assert sorted(order) == list(range(21))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
