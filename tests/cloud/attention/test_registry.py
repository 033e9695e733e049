"""Every registered backend gives what a plain softmax gives, over any packed batch."""

from __future__ import annotations

import pytest
import torch

from cloud.attention.base import AttentionBackend, AttentionTraits
from cloud.attention.gathered import GatheredAttention
from cloud.attention.in_place import InPlaceAttention
from cloud.attention.paged import PagedAttention, has_triton
from cloud.attention.registry import BACKENDS, backend_for
from tests.cloud.attention.packed_batches import (
    CPU,
    NUM_LAYERS,
    Heads,
    PackedBatch,
    relative_error,
)

TOLERANCE = 2e-6  # float32 sums of a few dozen terms
BATCHES = {
    "a prefill alone": [23],
    "a step alone": [1],
    "steps together": [1] * 7,
    "steps and prefills": [1, 9, 1, 2, 1, 17],
}
SINKS = torch.tensor([1.5, -0.5, 0.0, 2.5])  # one a head
TRAITS = {
    "plain": AttentionTraits(0.25),
    "window": AttentionTraits(0.25, window=12),
    "window of one": AttentionTraits(0.25, window=1),
    "soft cap": AttentionTraits(0.5, cap=1.5),
    "window and soft cap": AttentionTraits(0.5, window=5, cap=1.5),
    "sinks": AttentionTraits(0.25, sinks=SINKS),
    "sinks and window": AttentionTraits(0.25, window=12, sinks=SINKS),
}


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> type[AttentionBackend]:
    found = BACKENDS[request.param]
    if not found.runs_on(CPU):
        pytest.skip(f"{request.param} does not run on this machine's CPU")
    return found


@pytest.mark.parametrize("traits", TRAITS.values(), ids=TRAITS)
@pytest.mark.parametrize("num_rows", BATCHES.values(), ids=BATCHES)
def test_a_backend_gives_the_plain_softmax(
    backend: type[AttentionBackend], num_rows: list[int], traits: AttentionTraits
) -> None:
    for seed in range(1 if backend is PagedAttention else 3):  # the interpreter is slow
        batch = PackedBatch(seed, Heads(), num_rows)
        attention = backend(batch.step)
        for layer in range(batch.step.entries[0].lease.split, NUM_LAYERS):
            active = batch.active(layer)
            query = batch.query[: active[-1].end]
            got = attention.over(active)(layer, query, batch.new_keys_values(layer), traits)
            assert relative_error(got, batch.expected(layer, traits)) < TOLERANCE


@pytest.mark.parametrize(
    "heads",
    [
        Heads(query=3, kv=1, dim=64),  # SmolLM2's group
        Heads(query=8, kv=2, dim=64),
        Heads(query=4, kv=4, dim=32),
        Heads(query=5, kv=1, dim=80),
        Heads(query=4, kv=2, dim=128),
        Heads(query=2, kv=1, dim=24),  # no whole vectors
        Heads(query=2, kv=2, dim=256),  # Gemma's width
    ],
    ids=lambda heads: f"{heads.query}x{heads.kv}x{heads.dim}",
)
def test_a_backend_knows_any_heads(backend: type[AttentionBackend], heads: Heads) -> None:
    batch = PackedBatch(5, heads, [1, 4, 1])
    traits = AttentionTraits(heads.dim**-0.5)
    layer = NUM_LAYERS - 1
    attend = backend(batch.step).over(batch.step.entries)
    got = attend(layer, batch.query, batch.new_keys_values(layer), traits)
    assert relative_error(got, batch.expected(layer, traits)) < TOLERANCE


def test_a_backend_takes_queries_that_are_a_view(backend: type[AttentionBackend]) -> None:
    """The fused layer hands over a part of its joined product."""
    batch = PackedBatch(6, Heads(), [1, 6, 1])
    layer, traits = NUM_LAYERS - 1, AttentionTraits(0.25)
    joined = torch.cat((batch.query, batch.new_keys_values(layer)), dim=1)
    query, keys_values = joined[:, : batch.heads.query], joined[:, batch.heads.query :]
    assert not query.is_contiguous()
    got = backend(batch.step).over(batch.step.entries)(layer, query, keys_values, traits)
    assert relative_error(got, batch.expected(layer, traits)) < TOLERANCE


def test_one_step_may_have_layers_of_different_traits(backend: type[AttentionBackend]) -> None:
    """What a backend keeps for a step must not pass from one kind of layer to another."""
    batch = PackedBatch(7, Heads(), [1, 3, 1, 1])
    attention = backend(batch.step)
    layer = NUM_LAYERS - 1
    for traits in (*TRAITS.values(), *TRAITS.values()):
        attend = attention.over(batch.step.entries)
        got = attend(layer, batch.query, batch.new_keys_values(layer), traits)
        assert relative_error(got, batch.expected(layer, traits)) < TOLERANCE


def test_the_device_decides_unless_a_name_does() -> None:
    assert backend_for(CPU) is InPlaceAttention
    # A call for each session would cost too much there.
    expected = PagedAttention if has_triton() else GatheredAttention
    assert backend_for(torch.device("cuda")) is expected
    assert backend_for(CPU, "gathered") is GatheredAttention


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'flash'.*in_place, gathered, native, paged"):
        backend_for(CPU, "flash")


def test_a_backend_that_does_not_run_on_the_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"native.*does not run on cuda"):
        backend_for(torch.device("cuda"), "native")
