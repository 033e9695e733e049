"""The kernel's attention: a row has the same bits in any batch and on any number of threads."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from cloud.attention.base import AttentionTraits
from cloud.attention.native import NativeAttention, row_histories
from tests.cloud.attention.packed_batches import CPU, NUM_LAYERS, Heads, PackedBatch

needs_kernel = pytest.mark.skipif(
    not NativeAttention.runs_on(CPU), reason="the kernel was not built, or no AVX2"
)
LAYER = NUM_LAYERS - 1


@needs_kernel
def test_a_row_has_the_same_bits_alone_and_on_any_number_of_threads(
    request: pytest.FixtureRequest,
) -> None:
    before = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(before))
    batch = PackedBatch(1, Heads(query=6, kv=2, dim=64), [1, 30, 1, 5])
    traits = AttentionTraits(0.125, window=20)
    attention = NativeAttention(batch.step)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        attend = attention.over(batch.step.entries)
        results.append(attend(LAYER, batch.query, batch.new_keys_values(LAYER), traits))
    first = batch.step.entries[:1]
    results.append(attention.attend(LAYER, first, batch.query[:1], traits))
    assert all(torch.equal(results[0][: len(other)], other) for other in results)


def test_a_row_sees_every_position_up_to_its_own() -> None:
    batch = PackedBatch(2, Heads(), [1, 4, 2])
    for window in (None, 7):
        histories = row_histories(batch.step.entries, window)
        first = histories.first_piece.tolist()
        counts = [int(histories.pieces[begin:end, 2].sum()) for begin, end in pairwise(first)]
        seen = [stop for e in batch.step.entries for stop in range(e.start + 1, e.stop + 1)]
        assert counts == [min(count, window or count) for count in seen]
        assert max(counts) <= histories.longest < max(counts) + 16


def test_the_last_piece_of_a_row_ends_at_its_own_place() -> None:
    batch = PackedBatch(3, Heads(), [3, 1])
    histories = row_histories(batch.step.entries)
    for row, end in enumerate(histories.first_piece.tolist()[1:]):
        start, stride, count = histories.pieces[end - 1].tolist()
        place = batch.step.places[row] + LAYER * batch.step.strides[row]
        assert start + LAYER * stride + count - 1 == place
