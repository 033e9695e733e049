"""Sampling values: what is accepted crosses the wire unchanged and draws a token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.params import MAX_SEED, SMALLEST, SamplingParams
from decoding.penalties import penalized
from decoding.sampler import probabilities, sample, score
from protos import wire
from protos.messages import Open

SHA = "ab" * 32
ANY_REAL = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([0.0, -0.0, SMALLEST, 1e-308, 1e-50, 1.0, 100.0, 10**400]),
    st.floats(0.0, 1.0),
    st.floats(0.0, 100.0),
)
ANY_WHOLE = st.one_of(st.integers(), st.integers(0, 1 << 70), st.sampled_from([MAX_SEED, 1 << 31]))


def opened(sampling: SamplingParams) -> Open:
    return Open(
        session_id="s",
        model_sha256=SHA,
        split=1,
        hidden_size=8,
        codec_tables_sha256=SHA,
        max_tokens=8,
        sampling=sampling,
    )


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "temperature": ANY_REAL,
            "top_p": ANY_REAL,
            "min_p": ANY_REAL,
            "repetition_penalty": ANY_REAL,
            "top_k": ANY_WHOLE,
            "seed": ANY_WHOLE,
        },
    ),
    logits=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=8),
)
def test_accepted_values_cross_the_wire_unchanged_and_draw_without_nan(
    values: dict[str, Any], logits: list[float]
) -> None:
    try:
        params = SamplingParams(**values)
    except ValueError:
        return
    arrived = wire.decode_edge(wire.encode_edge(opened(params)))
    assert isinstance(arrived, Open)
    assert arrived.sampling == params
    assert SamplingParams(**{name: getattr(params, name) for name in values}) == params
    scores = np.array(logits, dtype=np.float32)
    seen = range(len(logits))
    token = sample(scores, params, position=3, seen=seen)
    assert 0 <= token.token_id < len(logits)
    if not params.greedy:
        shares = probabilities(penalized(scores, params.repetition_penalty, seen), params)
        assert math.isclose(shares.sum(), 1.0)
        assert shares[token.token_id] > 0
    assert math.isfinite(score(scores, token.token_id).logprob)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("temperature", 1e-308, "be 0 or lie between 1e-30 and 100"),
        ("temperature", 10**400, "a number of 1329 bits"),
        ("temperature", "0.5", "'0.5'"),
        ("top_p", 1e-50, "lie between 1e-30 and 1"),
        ("top_p", 0.0, "top-p is 0"),
        ("min_p", 1e-50, "min-p"),
        ("min_p", math.nan, "min-p is nan"),
        ("repetition_penalty", 1e-300, "lie between 0.01 and 100"),
        ("repetition_penalty", math.inf, "repetition penalty is inf"),
        ("seed", MAX_SEED + 1, "seed"),
        ("seed", -1, "seed is -1"),
        ("top_k", 1.5, "must be a whole number"),
        ("top_k", 10**400, "a number of 1329 bits"),
    ],
)
def test_values_that_would_break_later_are_refused_by_name(
    name: str, value: Any, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        SamplingParams(**{name: value})


def test_the_device_draws_with_the_numbers_that_the_server_gets() -> None:
    params = SamplingParams(temperature=0.7, top_p=0.9)
    assert params.temperature == float(np.float32(0.7))
    assert params == SamplingParams(temperature=float(np.float32(0.7)), top_p=0.9)
