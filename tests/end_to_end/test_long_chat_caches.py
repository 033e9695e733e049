"""The caches of `benchmarks/edge/long_chats.py` hold what their policies say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.edge.bounded_cache import UNBOUNDED, BoundedCache
from benchmarks.edge.episodic_cache import WAYS, EpisodicCache
from optimizer.export.calibration.hidden_states import cache_argument
from optimizer.policy.kv.refuse import Refuse
from optimizer.policy.kv.registry import kv_policy
from tests.kept_reference import KeptReference

TOKENS = [int(token) for token in np.random.default_rng(6).permutation(np.arange(4, 250))[:150]]
WORDS = SimpleNamespace(encode=lambda text: [TOKENS[0]] if len(text) < 20 else TOKENS[1:4])
BUDGET = 64


@pytest.fixture(scope="module")
def model(tiny: Any) -> Any:
    return tiny("llama").whole


def episodic(model: Any, by: str) -> EpisodicCache:
    return EpisodicCache(model, Refuse(), BUDGET, by=by, tokenizer=WORDS)


@pytest.mark.parametrize("context", ["recent", "entropy"])
def test_a_bounded_cache_reads_as_the_masked_model(model: Any, context: str) -> None:
    cache = BoundedCache(model, kv_policy(context), BUDGET)
    reference = KeptReference(model, kv_policy(context), BUDGET)
    for token in TOKENS:
        cache.read([token])
        reference.extend([token], [cache.scores[-1]])
    assert reference.rounds > 5
    assert cache.peak_tokens == BUDGET
    assert cache.ids == [TOKENS[position] for position in reference.cached]
    expected = reference.run().hidden_states[-1][0, -1]
    torch.testing.assert_close(cache.hidden[-1], expected, rtol=1e-4, atol=1e-4)


def test_chunks_change_nothing(model: Any) -> None:
    one, many = (BoundedCache(model, kv_policy("entropy"), BUDGET, judges=True) for _ in range(2))
    one.read(TOKENS)
    for token in TOKENS:
        many.read([token])
    assert one.ids == many.ids
    np.testing.assert_allclose(one.logprobs, many.logprobs, atol=1e-4)


def test_a_beginning_is_taken_over(model: Any) -> None:
    larger = BoundedCache(model, kv_policy("entropy"), UNBOUNDED)
    larger.read(TOKENS[:90])
    begun, alone = (BoundedCache(model, kv_policy("entropy"), BUDGET) for _ in range(2))
    begun.begin_as(larger)
    begun.read(TOKENS[len(begun.history) :])
    alone.read(TOKENS)
    assert begun.ids == alone.ids
    torch.testing.assert_close(begun.hidden[-1], alone.hidden[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by", WAYS)
def test_an_episodic_cache_stays_within_its_budget(model: Any, by: str) -> None:
    cache, whole = episodic(model, by), BoundedCache(model, Refuse(), UNBOUNDED)
    cache.read(TOKENS[:56])
    whole.read(TOKENS[:56])
    torch.testing.assert_close(cache.hidden, whole.hidden)
    cache.read(TOKENS[56:])
    assert 56 < cache.peak_tokens <= BUDGET
    lengths = {layer.keys.shape[2] for layer in cache.cache.layers}
    assert lengths == {len(cache.ids)}


def test_one_set_for_all_layers_reads_as_the_masked_model(model: Any) -> None:
    """The masked model is told which tokens stay, by their ids: each occurs once."""
    cache = episodic(model, "model")

    class Told(Refuse):
        def kept(self, num_tokens: int, capacity: int, scores: Any = ()) -> list[int]:
            return [at for at, place in enumerate(reference.cached) if TOKENS[place] in cache.ids]

    reference = KeptReference(model, Told(), 56)
    for token in TOKENS:
        cache.read([token])
        reference.extend([token])
    assert reference.rounds > 4
    assert cache.ids == [TOKENS[position] for position in reference.cached]
    expected = reference.run().hidden_states[-1][0, -1]
    torch.testing.assert_close(cache.hidden[-1], expected, rtol=1e-4, atol=1e-4)


def test_scores_are_the_largest_probabilities_among_the_cached_keys(model: Any) -> None:
    cache = episodic(model, "head")
    cache.read(TOKENS[:56])
    plain = cache.copied()
    prompt = cache._patched_prompt()
    cache._score_keys()
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        out = model(
            torch.tensor([prompt]),
            position_ids=torch.arange(56, 56 + len(prompt))[None],
            output_attentions=True,
            **{cache_argument(model): plain.cache},
        )
    finally:
        model.set_attn_implementation(usual)
    for scores, probabilities in zip(cache.key_scores, out.attentions, strict=True):
        past = probabilities[0, :, :, :56]
        past = past / past.sum(dim=-1, keepdim=True)
        expected = past.unflatten(0, (len(scores), -1)).amax(dim=(1, 2))
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)
    assert [layer.keys.shape[2] for layer in cache.cache.layers] == [56] * len(cache.key_scores)
